"""Where tables lie: a disk that is full, and two processes on one disk."""

import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import BusyError, JobConfig, TableError
from lakescore.purge import purge_target
from lakescore.tables import lock
from tests.jobs import ROWS, Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]
MORE = [(nth, f"Maria {nth} lives in Lisbon") for nth in range(60, 90)]


def keys(spark: "SparkSession", table: str) -> list[int]:
    return sorted(row.id for row in spark.read.format("delta").load(table).select("id").collect())


def add(spark: "SparkSession", settings: dict[str, Any]) -> None:
    more = spark.createDataFrame(MORE, "id long, text string")
    more.write.format("delta").mode("append").save(settings["source"]["table"])


@contextmanager
def held(folder: str) -> Iterator[None]:
    """Lock a folder as another process would: the lock is of the open file, not of the process."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=100k", "lakescore", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.usefixtures("begun")
def test_a_full_disk_is_said_and_the_next_run_goes_on_once_there_is_room(
    spark: "SparkSession", settings: dict[str, Any], run: Run, small_disk: Path
) -> None:
    for name in ("target", "target_checkpoint", "target_runs"):
        shutil.move(Path(settings["target"]["table"]).with_name(name), small_disk)
    target = f"{small_disk}/target"
    settings = settings | {"target": {"table": target}}
    add(spark, settings)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):  # until it is full
        while file.write(b"x" * 4096):
            pass
    os.truncate(filler, filler.stat().st_size - 64 * 1024)  # room for a part of what is to come
    with pytest.raises(TableError, match=r"the disk is full; free some room and run the job"):
        run(settings)
    assert keys(spark, target) == [row[0] for row in ROWS]
    filler.unlink()
    assert run(settings).rows_in == len(MORE)
    assert keys(spark, target) == [row[0] for row in ROWS + MORE]


@pytest.mark.usefixtures("begun")
def test_a_run_that_finds_another_one_at_work_does_nothing(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = settings["target"]["table"]
    add(spark, settings)
    [stream] = Path(f"{target}_checkpoint").glob("*/stream-*")
    stage = stream.with_name("stage-stream")
    stage.mkdir()  # of the one at work, which a purge is not to call dead
    config = JobConfig.parse(settings)
    for start in (lambda: run(settings), lambda: purge_target(spark, config, retain_hours=0)):
        with (
            held(f"{target}_checkpoint/lock"),
            pytest.raises(BusyError, match=r"_checkpoint/lock: another run of this job is at work"),
        ):
            start()
    assert stage.is_dir()
    assert keys(spark, target) == [row[0] for row in ROWS]
    assert spark.read.format("delta").load(f"{target}_runs").count() == 1


@pytest.mark.usefixtures("begun")
def test_a_commit_waits_for_that_of_another_process(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = settings["target"]["table"]
    add(spark, settings)
    done: list[int] = []
    job = threading.Thread(target=lambda: done.append(run(settings).rows_in))
    waits = threading.Event()
    locked = lock.locked

    def told(path: str, *, wait: bool) -> AbstractContextManager[None]:
        if (path, wait) == (target, True):
            waits.set()
        return locked(path, wait=wait)

    monkeypatch.setattr(lock, "locked", told)
    with held(target):
        job.start()
        while job.is_alive() and not waits.wait(0.1):
            pass
        assert waits.is_set()
        job.join(3)  # long enough for a commit that would not wait
        assert job.is_alive()
        assert keys(spark, target) == [row[0] for row in ROWS]
    job.join()
    assert done == [len(MORE)]
    assert keys(spark, target) == [row[0] for row in ROWS + MORE]
