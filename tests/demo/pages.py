"""The page as its user sees it: what can be typed, pressed and read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
# questions whose answers are all different, on which a random model is neither always right nor always wrong
TWENTY = "\n".join(
    f"What month comes {count} month{'s' if count > 1 else ''} after {MONTHS[i % 12]}? => {MONTHS[(i + count) % 12]}"
    for i, count in ((i, 1 + i // 12) for i in range(20))
)
_CLEAR = re.compile("clear|remove", re.IGNORECASE)
# seconds that an adaptation of twenty examples may take on two busy cores
PATIENCE = 90_000
# what an adaptation that is over leaves on the page: a line in the table of adaptations, or an error
_OUTCOMES = """() => document.querySelectorAll("#history tbody tr").length
    + (document.querySelector("#error [role=alert]")?.innerText ?? "")"""


class DemoPage:
    """The page's parts by their names, and what one does with them."""

    def __init__(self, page: Any, artifacts: Path) -> None:
        self.page = page
        self._artifacts = artifacts

    def part(self, name: str) -> Any:
        """A part by its element id."""
        return self.page.locator(f"#{name}")

    def text(self, name: str) -> str:
        """What is to be read in it."""
        return self.part(name).inner_text()

    def wait_ready(self) -> None:
        """Until it can be used."""
        self.part("examples-text").locator("textarea").wait_for()

    def wait_text(self, name: str, text: str, timeout: float = PATIENCE) -> None:
        """Until the part reads like that; the case is the style sheet's."""
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.toLowerCase().includes(text.toLowerCase())",
            arg=[name, text],
            timeout=timeout,
        )

    def paste(self, text: str) -> None:
        """Paste examples, and leave the field."""
        area = self.part("examples-text").locator("textarea")
        area.fill(text)
        area.blur()

    def hold_out(self, count: int) -> None:
        """Set how many examples are held out."""
        number = self.part("held-out").locator("input[type=number]")
        number.fill(str(count))
        number.blur()

    def upload(self, path: Path) -> None:
        """Drop a file."""
        self.part("examples-file").locator("input[type=file]").set_input_files(str(path))

    def drop_file(self) -> None:
        """Take the file away again, if there is one."""
        field = self.part("examples-file").locator("input[type=file]")
        if not field.count():
            self.part("examples-file").get_by_role("button", name=_CLEAR).first.click()
            field.wait_for(state="attached")

    def press(self, name: str) -> None:
        """Press a button."""
        self.button(name).click()

    def button(self, name: str) -> Any:
        """A button by its element id: the id's own element, or the one inside of it."""
        return self.page.locator(f"button#{name}, #{name} button").first

    def enabled(self, name: str) -> bool:
        """Whether a button can be pressed."""
        return self.button(name).is_enabled()

    def adapt(self) -> None:
        """Press Adapt, as soon as that is possible, and wait for the results."""
        self.start()
        self.wait_done()

    def start(self) -> None:
        """Press Adapt, as soon as that is possible, and wait until it has begun.

        On a busy machine the page may learn of the beginning and of the end at once, and the button is never seen off.
        """
        self.wait_button("adapt", True)
        before = self.page.evaluate(_OUTCOMES)
        self.press("adapt")
        self.page.wait_for_function(
            f"""(before) => document.querySelector("button#adapt, #adapt button").disabled
                || ({_OUTCOMES})() !== before""",
            arg=before,
            timeout=PATIENCE,
        )

    def wait_button(self, name: str, enabled: bool, timeout: float = PATIENCE) -> None:
        """Until a button can be pressed, or cannot: it is switched off, or not there."""
        self.page.wait_for_function(
            """([name, on]) => {
                const button = document.querySelector(`button#${name}, #${name} button`);
                return on === Boolean(button && !button.disabled && button.checkVisibility());
            }""",
            arg=[name, enabled],
            timeout=timeout,
        )

    def wait_stage(self, title: str) -> None:
        """Until that stage goes on."""
        self.part("progress").locator("[aria-current=step]", has_text=title).wait_for(
            timeout=PATIENCE
        )

    def wait_done(self) -> None:
        """Until an adaptation is over, one way or the other."""
        self.wait_button("adapt", True)
        self.wait_button("cancel", False)

    def choose(self, name: str, option: str) -> None:
        """Choose from a list."""
        self.part(name).locator("input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def rows(self, name: str) -> Any:
        """The rows of a table."""
        return self.part(name).locator("tbody tr")

    def cells(self, name: str) -> list[str]:
        """What stands in the rows of a table."""
        return self.rows(name).all_inner_texts()

    def wait_rows(self, name: str, count: int) -> None:
        """Until a table has so many rows."""
        self.page.wait_for_function(
            "([id, count]) => document.querySelectorAll(`#${id} tbody tr`).length === count",
            arg=[name, count],
        )

    def ask(self, question: str, options: str) -> str:
        """Ask both models; what they say."""
        self.part("side-question").locator("textarea, input").first.fill(question)
        self.part("side-options").locator("textarea, input").first.fill(options)
        self.press("side-ask")
        answers = self.part("side-answers")
        answers.locator(".dg-asked", has_text=question).wait_for()
        return answers.inner_text()

    def download(self, name: str) -> Path:
        """Press the download button; where the file is."""
        folder = self._artifacts / "downloads"
        with self.page.expect_download() as download:
            self.press("download")
        path = folder / f"{name}.zip"
        download.value.save_as(path)
        return path

    def picture(self, name: str) -> None:
        """Keep a picture of the whole page among the tests' artifacts."""
        self._artifacts.mkdir(exist_ok=True)
        self.page.screenshot(path=str(self._artifacts / f"{name}.png"), full_page=True)

    def overflow(self) -> int:
        """By how many pixels it is wider than the window."""
        return self.page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
