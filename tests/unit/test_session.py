"""How a local Spark is started: what needs no Spark."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lakescore import distribute
from lakescore.errors import SetupError
from lakescore.locks import locked
from lakescore.session import local_session


@pytest.mark.delta
def test_processes_start_their_sessions_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two that fetch Delta's jars into an empty folder at once, none gets them.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lock = str(distribute.own_folder() / ".session.lock")

    def start() -> None:
        with locked(lock, wait=False, is_file=True):
            pytest.fail("another process could start its session now")

    def configure(builder: Any) -> Any:
        return SimpleNamespace(getOrCreate=start)

    monkeypatch.setattr("delta.configure_spark_with_delta_pip", configure)
    with pytest.raises(SetupError) as raised, local_session(log_file=tmp_path / "spark.log"):
        pass
    assert isinstance(raised.value.__cause__, BlockingIOError)
    with locked(lock, wait=False, is_file=True):
        pass  # it is free again
