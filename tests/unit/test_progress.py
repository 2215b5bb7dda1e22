import io
import sys

import pytest

from lakescore.progress import line_progress, show_progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    say = line_progress(clock)
    for seconds, done in [(1, 10), (16, 1000), (2, 1100), (15, 2000), (1, 4000), (1, 4000)]:
        clock.now += seconds
        say(done, 4000)
    assert capsys.readouterr().err.splitlines() == [
        "scored 1,000 of 4,000 rows, 59 rows/s, 51 s left",
        "scored 2,000 of 4,000 rows, 59 rows/s, 34 s left",
        "scored 4,000 of 4,000 rows, 114 rows/s",
    ]


def test_a_total_that_was_too_small_stops_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    say = line_progress(clock)
    for done in (0, 0, 10, 20):
        clock.now += 1
        say(done, done)
    assert [line.split(" rows,")[0] for line in capsys.readouterr().err.splitlines()] == [
        "scored 0 of 0",
        "scored 10 of 10",
        "scored 20 of 20",
    ]


def test_nothing_to_do_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    say = line_progress(Clock())
    say(0, 0)
    say(0, 0)
    assert capsys.readouterr().err == "scored 0 of 0 rows, 0 rows/s\n"


def test_without_a_terminal_there_are_lines_and_stdout_stays_free(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress() as progress:
        progress(7, 7)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("scored 7 of 7 rows, ")


def test_whoever_reads_the_lines_may_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    line_progress(Clock())(7, 7)
