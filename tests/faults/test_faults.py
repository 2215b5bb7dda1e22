import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.spark
ROOT = Path(__file__).resolve().parents[2]
# The others start several drivers at once, which takes minutes: `make faults` has them.
KINDS = ("worker_kills", "driver_kills", "cdf_steps", "canary_hits")


def test_a_fault_leaves_every_row_there_once_and_no_text_in_a_log() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick", "--only", *KINDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "worker_kills": [1, 1],
        "driver_kills": [1, 1],
        "cdf_steps": [8, 8],
        "canary_hits": 0,
    }
