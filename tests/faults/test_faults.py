import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.spark
ROOT = Path(__file__).resolve().parents[2]


def test_one_fault_of_every_kind_leaves_every_row_there_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "worker_kills": [1, 1],
        "executor_kills": [1, 1],
        "driver_kills": [1, 1],
        "double_starts": [1, 1],
        "concurrent_commits": [4, 4],
        "poison_rows": [1, 1],
        "cdf_steps": [8, 8],
        "canary_hits": 0,
    }
