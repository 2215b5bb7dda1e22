import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.delta]
ROOT = Path(__file__).resolve().parents[2]


def test_a_fault_leaves_every_row_there_once_and_no_text_in_a_log() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout.splitlines()[-1])
    assert tally.pop("canary_hits") == 0
    assert set(tally) == {
        "worker_kills",
        "executor_kills",
        "driver_kills",
        "double_starts",
        "concurrent_commits",
        "poison_rows",
        "cdf_steps",
    }
    assert all(held == tried > 0 for held, tried in tally.values())
