"""Bars where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import io
import logging
import sys
import time

from degaml_kedro.common import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "_BAR_AFTER_SECONDS", 0.0)
    with progress.progress_bar("capitals", "step", done=2) as report:
        for step in range(3, 6):
            time.sleep(0.12)  # tqdm draws ten times a second
            report(step, 10)
    assert "capitals" in screen.getvalue()
    assert "/10" in screen.getvalue()


def test_what_is_over_at_once_shows_nothing(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.progress_bar("capitals", "step") as report:
        report(1, 1)
    assert screen.getvalue().strip() == ""


def test_a_log_gets_a_line_now_and_then_without_what_was_done_before(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with (
        caplog.at_level(logging.INFO, "degaml_kedro.common.progress"),
        progress.progress_bar("capitals", "step", done=50) as report,
    ):
        for step in range(51, 101):
            now += 2.0
            report(step, 100)
    lines = [record.message for record in caplog.records]
    assert lines[0] == "capitals: 65 of 100 steps, about 01:10 left"
    assert len(lines) == 3
