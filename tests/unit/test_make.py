"""The Makefile's own decisions, where they need no network: which Python, and what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A make of its own, not a part of the one that may run these tests."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", "-s", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """A python3.12 that is there and does not run, as a version manager leaves one."""
    file = tmp_path / "python3.12"
    file.write_text("#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n", "utf-8")
    file.chmod(0o755)
    return file


def test_a_python_that_does_not_run_is_passed_over(shim: Path) -> None:
    good = shim.with_name("python3.11")  # sys.executable itself may lie in a folder with spaces
    good.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "utf-8")
    good.chmod(0o755)
    done = make("venv", f"PYTHON={shim} no-such-python {good}", "RUNTIME=no-such")
    known = ", ".join(sorted(file.stem for file in (ROOT / "conf/runtimes").glob("*.txt")))
    assert f"RUNTIME=no-such: unknown; known: {known}" in done.stderr
    assert done.returncode != 0


def test_without_a_fitting_python_one_line_names_the_remedy(shim: Path) -> None:
    done = make("venv", f"PYTHON={shim}")
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"no Python 3.11 or 3.12 that runs, with venv and pip, among: {shim};")
    assert [line for line in rest if not line.startswith("make")] == []
    assert (done.returncode, done.stdout) == (2, "")


def test_help_lists_every_command() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    listed = set(re.findall(r"^  make ([a-z-]+)", make().stdout, re.MULTILINE))
    assert listed == set(phony.split()) - {"venv", "java"}
