"""Models on executors: real processes of a local cluster, and a real Spark Connect server."""

import io
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lakescore.distribute import Shipped, device_for, task_device
from lakescore.snapshot import open_snapshot, resolve
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(
    ("addresses", "partition", "devices", "expected"),
    [
        (["1"], 0, 2, "cuda:1"),  # what Spark assigned
        ([], 3, 2, "cuda:1"),  # no GPU scheduling: by the partition
        (["5"], 3, 2, "cuda:1"),  # an address that this process does not see
        (["GPU-abc"], 2, 2, "cuda:0"),
        (["0"], 0, 0, "cpu"),
        ([], 7, 0, "cpu"),
    ],
)
def test_a_task_takes_the_device_that_spark_assigned(
    addresses: list[str], partition: int, devices: int, expected: str
) -> None:
    assert device_for(addresses, partition, devices) == expected


def run(script: str, *arguments: str, **environment: str) -> str:
    """Run a script in a process of its own, since a JVM has one SparkContext, and no second."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYSPARK_PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Two addresses that stand for two GPUs: Spark assigns them without looking for any. The first
# column is the device that a task would take if its worker saw two GPUs.
CLUSTER = """
import os, sys, time
from pathlib import Path
import lakescore
from lakescore.distribute import slots_of, task_device
from lakescore.session import local_session
from tests.jobs import FAULT_JOBS

model, discovery, folder = sys.argv[1:]
gpus = {
    "spark.worker.resource.gpu.amount": "2",
    "spark.worker.resource.gpu.discoveryScript": discovery,
    "spark.executor.resource.gpu.amount": "2",
    "spark.executor.resource.gpu.discoveryScript": discovery,
    "spark.task.resource.gpu.amount": "1",
    "spark.executor.cores": "4",
    "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    "spark.executorEnv.TMPDIR": folder,
}
master = "local-cluster[1,4,1024]"
settings = FAULT_JOBS | gpus
with local_session(master=master, settings=settings, log_file=Path(folder) / "spark.log") as spark:
    def devices(rows):
        list(rows)
        device, threads = task_device(device_count=2)
        Path(folder, f"met-{device}").touch()
        # Both tasks run at once: each waits until the other has its device too.
        for _ in range(600):
            if len(list(Path(folder).glob("met-*"))) == 2:
                break
            time.sleep(0.1)
        yield device, threads, os.getppid()

    taken = spark.sparkContext.parallelize(range(2), 2).mapPartitions(devices).collect()
    print("slots", slots_of(spark))
    print("devices", sorted(device for device, _, _ in taken), {n for _, n, _ in taken})

    config = lakescore.JobConfig.parse({"tasks": {"entities": {"model": model}}})
    texts = spark.range(40).selectExpr("id", "concat('Maria ', id, ' in Lisbon') as text")
    rows = lakescore.score(texts.repartition(4), config).collect()
    print("scored", sum(row.error is None for row in rows))
    unpacked = [each for root in Path(folder).glob("lakescore-*") for each in root.iterdir()
                if each.is_dir()]
    print("unpacked", len(unpacked), {each.name for each in unpacked} == {
        row.model["entities"].removeprefix("sha256:") for row in rows})
"""


@pytest.mark.delta  # local_session has it
def test_each_task_of_an_executor_has_its_own_gpu_and_the_model_is_unpacked_once(
    entity_model: Path, tmp_path: Path
) -> None:
    discovery = tmp_path / "discover.sh"
    discovery.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0", "1"]}\'\n')
    discovery.chmod(0o755)
    printed = run(CLUSTER, str(entity_model), str(discovery), str(tmp_path))
    assert printed.splitlines() == [
        "slots 2",
        "devices ['cuda:0', 'cuda:1'] {1}",
        "scored 40",
        "unpacked 1 True",
    ]


@pytest.mark.delta
def test_a_worker_has_none_of_deltas_jars_to_look_through(spark: "SparkSession") -> None:
    def looked_through(_: int) -> list[str]:
        return [Path(path).name for path in sys.path]

    [names] = spark.sparkContext.parallelize([0], 1).map(looked_through).collect()
    assert [name for name in names if name.startswith("io.delta")] == []


def test_a_worker_keeps_its_first_device_for_all_its_partitions(spark: "SparkSession") -> None:
    def device(partition: int, rows: Any) -> Any:
        list(rows)
        yield os.getpid(), partition, task_device(device_count=8)[0]

    seen = spark.sparkContext.parallelize(range(8), 8).mapPartitionsWithIndex(device).collect()
    workers = {process for process, _, _ in seen}
    assert len(workers) < len(seen)  # local[2] has two workers, which serve eight partitions
    assert len({(process, name) for process, _, name in seen}) == len(workers)


def test_a_copy_that_was_damaged_on_its_host_is_unpacked_again(
    entity_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened: dict[str, Path] = {}
    monkeypatch.setattr("lakescore.distribute._OPENED", opened)
    snapshot = resolve(str(entity_model), task="entities")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for path in snapshot.folder.iterdir():
            writer.write(path, path.name)
    shipped = Shipped(snapshot.fingerprint, SimpleNamespace(value=archive.getvalue()), None)
    folder = shipped.folder()
    assert folder.is_relative_to(tmp_path)
    (folder / "model.safetensors").unlink()
    opened.clear()
    assert shipped.folder() == folder
    assert open_snapshot(folder).fingerprint == snapshot.fingerprint
    assert {path.name for path in folder.parent.iterdir()} == {".lock", snapshot.fingerprint}
