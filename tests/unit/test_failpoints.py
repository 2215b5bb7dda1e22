"""The faults that other tests order: each happens where and when it was ordered, and else none."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

STEPS = "[failpoints.reached(step) for step in ('planned', 'staged', 'planned')]"


def outcome(program: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"from lakescore import failpoints; {program}; print('passed')"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")} | env,
        capture_output=True,
        text=True,
        start_new_session=True,  # a failpoint kills its process group
    )


@pytest.mark.parametrize("order", ["", "committed", "planned:3", "staged:2:raise"])
def test_a_step_that_is_not_reached_does_nothing(order: str) -> None:
    done = outcome(STEPS, LAKESCORE_FAILPOINT=order)
    assert (done.returncode, done.stdout) == (0, "passed\n")


@pytest.mark.parametrize("order", ["planned", "staged:1", "planned:2"])
def test_a_step_kills_its_process_group(order: str) -> None:
    done = outcome(STEPS, LAKESCORE_FAILPOINT=order)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_a_step_raises_if_that_is_wanted() -> None:
    done = outcome(STEPS, LAKESCORE_FAILPOINT="staged:1:raise")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("RuntimeError: failpoint staged\n")


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({}, 0),
        ({"LAKESCORE_POISON": "other"}, 0),
        ({"LAKESCORE_POISON": "word"}, -signal.SIGKILL),
        ({"LAKESCORE_TOKENIZER_ERROR": "word"}, 1),
    ],
)
def test_a_text_with_the_marker_is_refused_or_kills(env: dict[str, str], code: int) -> None:
    assert outcome("failpoints.tokenizing(['a word', 'none'])", **env).returncode == code


@pytest.mark.parametrize(("width", "code"), [(59, 0), (60, 1)])
def test_memory_runs_out_from_a_width_on(width: int, code: int) -> None:
    done = outcome(f"failpoints.forward({width})", LAKESCORE_OUT_OF_MEMORY_FROM="60")
    assert done.returncode == code
