"""The command line as a user meets it: messages of a line or two, no tracebacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lakescore import BudgetError, BusyError, JobConfig, LakescoreError
from lakescore.cli import cli, main
from tests.conftest import ROOT
from tests.tiny_models import tiny_model


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_wrong_key_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yml"
    path.write_text("tasks: {entites: {model: m}}")
    assert error_of(capsys, "score", str(path)) == (
        f"ConfigError: {path}: unknown key 'tasks.entites'; known: entities, sentiment "
        "(did you mean entities?)\n"
    )


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lakescore.cli", "score", str(tmp_path / "none.yml"), "--debug"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ConfigError" in done.stderr


def test_register_prints_the_version_and_finds_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_model(tmp_path / "model")
    arguments = ["--model", str(folder), "--name", "tiny", "--alias", "champion"]
    store = ["--tracking-uri", f"sqlite:///{tmp_path}/store.db", "--experiment", "registered"]
    printed = []
    for _ in range(2):
        main(["register", *arguments, *store])
        printed.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [(each["uri"], each["created"]) for each in printed] == [
        ("models:/tiny/1", True),
        ("models:/tiny/1", False),
    ]


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(BusyError, 3), (BudgetError, 1)])
def test_a_scheduler_can_tell_another_run_at_work_from_a_failure(
    error: type[LakescoreError],
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise error("why")

    monkeypatch.setattr(JobConfig, "load", load)
    with pytest.raises(SystemExit) as ended:
        main(["score", "job.yml"])
    assert ended.value.code == code
    assert capsys.readouterr().err == f"{error.__name__}: why\n"


def test_what_is_raised_because_of_ctrl_c_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("the gateway is gone")

    monkeypatch.setattr(JobConfig, "load", load)
    with pytest.raises(SystemExit) as ended:
        main(["score", "job.yml"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_wrong_usage_ends_with_2_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["score", "--nope"])
    assert ended.value.code == 2
    assert "--nope" in capsys.readouterr().err


def test_jobs_take_the_same_arguments(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/score.py"), str(tmp_path / "none.yml")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"ConfigError: {tmp_path}/none.yml: No such file or directory; name a YAML file that can "
        "be read\n"
    )
