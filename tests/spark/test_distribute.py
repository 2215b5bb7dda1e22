"""Models on executors: real processes of a local cluster, and a real Spark Connect server."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lakescore.distribute import device_for
from tests.conftest import ROOT

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
from lakescore.distribute import task_device
from lakescore.session import local_session

model, discovery, folder = sys.argv[1:]
gpus = {
    "spark.worker.resource.gpu.amount": "2",
    "spark.worker.resource.gpu.discoveryScript": discovery,
    "spark.executor.resource.gpu.amount": "2",
    "spark.executor.resource.gpu.discoveryScript": discovery,
    "spark.task.resource.gpu.amount": "1",
    "spark.executor.cores": "2",
    "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    "spark.executorEnv.TMPDIR": folder,
}
master = "local-cluster[1,2,1024]"
with local_session(master=master, settings=gpus, log_file=Path(folder) / "spark.log") as spark:
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
    print("devices", sorted(device for device, _, _ in taken), {n for _, n, _ in taken})

    config = lakescore.JobConfig.parse({"tasks": {"entities": {"model": model}}})
    texts = spark.range(40).selectExpr("id", "concat('Maria ', id, ' in Lisbon') as text")
    rows = lakescore.score(texts.repartition(4), config).collect()
    print("scored", sum(row.error is None for row in rows))
    unpacked = [each for root in Path(folder).glob("lakescore-*") for each in root.iterdir()]
    print("unpacked", len(unpacked), {each.name for each in unpacked} == {
        row.model["entities"].removeprefix("sha256:") for row in rows})
"""


def test_each_task_of_an_executor_has_its_own_gpu_and_the_model_is_unpacked_once(
    entity_model: Path, tmp_path: Path
) -> None:
    discovery = tmp_path / "discover.sh"
    discovery.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0", "1"]}\'\n')
    discovery.chmod(0o755)
    printed = run(CLUSTER, str(entity_model), str(discovery), str(tmp_path))
    assert printed.splitlines() == [
        "devices ['cuda:0', 'cuda:1'] {1}",
        "scored 40",
        "unpacked 1 True",
    ]


CONNECT = """
import sys
import lakescore
from pyspark.sql import SparkSession

spark = SparkSession.builder.remote("local[2]").getOrCreate()
texts = spark.createDataFrame([(1, "Maria in Lisbon"), (2, None)], "id int, text string")
config = lakescore.JobConfig.parse({"tasks": {"entities": {"model": sys.argv[1]}}})
rows = lakescore.score(texts, config).orderBy("id").collect()
entities = lakescore.entities(sys.argv[1], spark=spark)
assert [row.e for row in texts.orderBy("id").select(entities("text").alias("e")).collect()] == [
    row.entities for row in rows]
spark.udf.register("entities", entities)
texts.createOrReplaceTempView("texts")
assert spark.sql("select count(entities(text)) from texts").first()[0] == 1
print(type(spark).__module__, [row.error and row.error.code for row in rows])
spark.stop()
"""


def test_a_connect_session_gets_the_model_as_an_artifact(
    entity_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("grpc", reason="Spark Connect needs grpcio, which pyspark[connect] brings")
    printed = run(CONNECT, str(entity_model), TMPDIR=str(tmp_path))
    assert printed.strip() == "pyspark.sql.connect.session [None, 'null_text']"
