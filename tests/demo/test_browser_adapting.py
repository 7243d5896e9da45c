"""A user adapts to examples: pasted, dropped as a file, or of a ready task."""

from __future__ import annotations

import json
import re
import zipfile

import pytest

from tests.demo.pages import MONTHS, TWENTY
from tests.demo.plain_peft import probabilities

pytestmark = pytest.mark.xdist_group("browser")

LINES = TWENTY.splitlines()
PAIRS = [line.split(" => ") for line in LINES]
_ACCURACY = re.compile(r"\d\.\d\d \(\d\.\d\d–\d\.\d\d, n = (\d+)\)")


def stages_seen(page):
    """Collects what the progress said, from now on."""
    page.page.evaluate(
        """() => {
            window.told = [];
            const part = document.getElementById('progress');
            const look = () => {
                const now = part.querySelector('[aria-current=step]')?.innerText;
                if (now && !window.told.includes(now)) window.told.push(now);
                const left = part.innerText.match(/about \\d+ s left/);
                if (left) window.left = left[0];
            };
            new MutationObserver(look).observe(part, {childList: true, subtree: true, characterData: true});
        }"""
    )


def test_from_pasting_to_plain_peft(page, tmp_path):
    page.picture("start")
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    assert "20" in page.text("parse-summary")
    first = page.cells("parsed-table")[0]
    assert "What month comes 1 month after January?" in first
    assert "February" in first

    page.hold_out(5)
    stages_seen(page)
    page.adapt()
    found = page.text("results")
    assert {int(n) for n in _ACCURACY.findall(found)} >= {5}
    assert "Base model" in found
    assert "Generated adapter" in found
    assert "Adapted model" in found
    told = page.page.evaluate("window.told")
    assert told, "the progress showed no stage"
    assert page.page.evaluate("window.left"), "the progress showed no time left"

    tried = page.cells("proposals")
    assert tried
    assert all(_ACCURACY.search(row) for row in tried)
    words = page.text("strategy")
    assert "What was done" in words
    assert len(page.cells("history")) == 1
    assert page.part("peft-code").locator(".cm-line").count() >= 3
    page.picture("results")

    asked, options = "What month comes 1 month after April?", ["May", "June", "October"]
    said = page.ask(asked, " | ".join(options))
    adapted = said[said.index("Adapted") :]
    shown = [float(share) for share in re.findall(r"(\d+\.\d) %", adapted)]
    page.picture("side-by-side")

    archive = page.download("happy-path")
    assert archive.stat().st_size > 1000
    with zipfile.ZipFile(archive) as zipped:
        assert all(not name.startswith(("/", "..")) for name in zipped.namelist())
        zipped.extractall(tmp_path)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "degaml.json",
    ]
    plain = probabilities(tmp_path / "adapter", asked, options)
    assert shown == pytest.approx([100 * share for share in plain], abs=0.06)
    base = [float(share) for share in re.findall(r"(\d+\.\d) %", said[: said.index("Adapted")])]
    assert base != shown, "the adapter does nothing, so that nothing was compared"


def test_every_stage_is_shown(page):
    # long questions: a picture takes its time
    page.paste(
        "\n".join(f"{'word ' * 40}{i}? => {('yes', 'no', 'perhaps')[i % 3]}" for i in range(24))
    )
    page.choose("pair", "slow")
    stages_seen(page)
    page.start()
    page.wait_text("progress", "left")
    page.wait_text("results", "Base model")
    assert not page.enabled("side-ask"), "the first numbers were to be seen before the end"
    page.picture("progress")
    page.wait_button("adapt", True, timeout=120_000)
    told = page.page.evaluate("window.told")
    assert told[0] == "Base model"
    assert "Try strategies" in told


def test_ready_task(page):
    page.press("use-ready")
    page.wait_text("parse-summary", "read as")
    count = int(re.match(r"\s*(\d+)", page.text("parse-summary"))[1])
    assert count >= 20
    page.adapt()
    asked = {int(n) for n in _ACCURACY.findall(page.text("results"))}
    assert max(asked) >= 20
    assert sum(map(int, re.findall(r"(\d+) \+ (\d+)", page.text("history"))[0])) == count


FILES = {
    "examples.json": json.dumps([{"question": q, "answer": a} for q, a in PAIRS]),
    "examples.jsonl": "\n".join(json.dumps({"input": q, "label": a}) for q, a in PAIRS),
    "examples.csv": "question;answer\n" + "\n".join(f'"{q}";{a}' for q, a in PAIRS),
    "examples.txt": TWENTY,
}


def test_files(page, tmp_path):
    for name, content in FILES.items():
        page.paste("")
        page.wait_rows("parsed-table", 0)
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        page.upload(path)
        page.wait_rows("parsed-table", 20)
        last = page.cells("parsed-table")[-1]
        assert PAIRS[-1][0] in last, name
        assert PAIRS[-1][1] in last, name
        page.drop_file()
    page.hold_out(5)
    page.adapt()
    assert "n = 5" in page.text("results")


def test_nothing_held_out_is_said(page):
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.hold_out(0)
    page.adapt()
    found = page.text("results")
    assert "Nothing was held out" in found
    assert {int(n) for n in _ACCURACY.findall(found)} == {20}
    page.picture("nothing-held-out")


def test_history_chooses_who_answers(page):
    """Two adaptations of one user: the older one can be asked again, and answers as before."""
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.adapt()
    question = ("Which comes first?", " | ".join(MONTHS[:4]))
    first = page.ask(*question)
    page.paste("\n".join(f"Is {i} even? => {'no' if i % 2 else 'yes'}" for i in range(12)))
    page.wait_rows("parsed-table", 12)
    page.hold_out(4)
    page.adapt()
    assert len(page.cells("history")) == 2
    second = page.ask(*question)
    assert _shares(first) != _shares(second)
    page.choose("history-choice", "#1 · What month comes 1 month after January?")
    page.wait_text("history", "January? selected")
    assert _shares(page.ask(*question)) == _shares(first)
    page.picture("history")


def _shares(text):
    return re.findall(r"\d+\.\d %", text)
