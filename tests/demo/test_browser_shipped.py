"""The page as everybody starts it: the pair that ships with the project, on the embedded base model."""

from __future__ import annotations

import json
import re
import zipfile

import pytest

from tests.demo.pages import TWENTY
from tests.demo.plain_peft import probabilities

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

# two busy cores, and a model of a hundred million parameters
PATIENCE = 240_000


def test_adapting_with_the_shipped_pair(open_page, shipped_app, tmp_path):
    page = open_page(shipped_app)
    page.paste(TWENTY)
    page.wait_rows("parsed-table", 20)
    page.hold_out(5)
    page.start()
    page.wait_text("results", "n = 5", timeout=60_000)
    page.wait_stage("Try strategies")
    page.picture("shipped-progress")
    page.wait_button("adapt", True, timeout=PATIENCE)
    assert "Adapted model" in page.text("results")
    assert len(page.cells("proposals")) >= 1
    page.picture("shipped-results")

    question, options = "What month comes 1 month after May?", ["June", "May", "October"]
    said = page.ask(question, " | ".join(options))
    shown = [float(share) for share in re.findall(r"(\d+\.\d) %", said[said.index("Adapted") :])]
    with zipfile.ZipFile(page.download("shipped")) as archive:
        archive.extractall(tmp_path)
    about = json.loads((tmp_path / "adapter" / "degaml.json").read_text(encoding="utf-8"))
    plain = [100 * share for share in probabilities(tmp_path / "adapter", question, options)]
    assert sum(plain) == pytest.approx(100)
    if not about["more_than_peft"]:
        # bfloat16, computed in another order
        assert shown == pytest.approx(plain, abs=5)
