"""The declarative pipeline, run for real by open-source spark-pipelines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import lakescore
from tests.conftest import ROOT
from tests.spark.conftest import ConnectServer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]
pytest.importorskip("pyspark.pipelines", reason="pyspark.pipelines came with Spark 4.1")
ROWS = [
    (1, "2026-05-01 10:00:00", "Maria lives in Lisbon"),
    (2, "2026-05-01 11:00:00", "so late,\x01 again!"),
    (3, "2026-05-02 09:00:00", None),
    (4, "2026-05-02 10:00:00", "Lisbon is late"),
    (None, "2026-05-02 11:00:00", "whose is this"),
]


def add(spark: "SparkSession", rows: list[Any]) -> None:
    frame = spark.createDataFrame(rows, "`the id` int, said string, text string")
    writer = frame.coalesce(1).write.format("delta").mode("append")
    writer.option("delta.columnMapping.mode", "name").saveAsTable("messages")


@pytest.fixture
def spec(tmp_path: Path, entity_model: Path, sentiment_model: Path) -> Path:
    """The spec of a pipeline over the table `messages`."""
    file = tmp_path / "spark-pipeline.yml"
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    settings = {
        "lakescore.source": "messages",
        "lakescore.key": "the id",
        "lakescore.time": "said",
        "lakescore.text": "text",
        "lakescore.entities": str(entity_model),
        "lakescore.sentiment": str(sentiment_model),
    }
    file.write_text(
        yaml.safe_dump(
            {
                "name": "messages",
                "storage": f"file://{tmp_path}/storage",
                "libraries": [{"glob": {"include": "jobs/pipeline/scored_messages.py"}}],
                "configuration": settings,
            }
        )
    )
    return file


def run(spec: Path, server: ConnectServer) -> None:
    import pyspark

    home = Path(pyspark.__file__).parent
    own = {"SPARK_HOME": str(home), "PYSPARK_PYTHON": sys.executable}
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    command = ["bin/spark-pipelines", "--remote", server.url, "run", "--spec", str(spec)]
    done = subprocess.run(command, cwd=home, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def read(connect: "SparkSession", table: str) -> list[Any]:
    connect.catalog.refreshTable(table)  # its Parquet files were listed before the second run
    return connect.table(table).collect()


def test_each_row_is_scored_once_and_what_follows_is_right(
    connect: "SparkSession",
    connect_server: ConnectServer,
    spec: Path,
    entity_model: Path,
    sentiment_model: Path,
) -> None:
    add(connect, ROWS)
    run(spec, connect_server)
    models = {
        "entities": {"model": str(entity_model)},
        "sentiment": {"model": str(sentiment_model)},
    }
    rows = connect.createDataFrame(
        [(row[0], (row[2] or "").replace("\x01", " ") or None) for row in ROWS[:4]],
        "id int, text string",
    )
    config = lakescore.JobConfig.parse({"tasks": models})
    expected = sorted(lakescore.score(rows, config).collect())
    found = connect.table("scored_messages")
    assert sorted(found.drop("said_at").collect()) == expected
    before = {row.id: row for row in found.collect()}
    assert {row.error.code for row in before.values() if row.error} == {"null_text"}

    entities = connect.table("message_entities")
    assert entities.columns == [
        "id", "said_at", "entity_group", "word", "score", "start", "end",
    ]  # fmt: skip
    assert entities.count() == sum(len(row.entities or ()) for row in expected) > 0
    days = read(connect, "daily_sentiment")
    assert {str(row.day) for row in days} == {"2026-05-01", "2026-05-02"}
    assert sum(row.messages for row in days) == 3

    add(connect, [(5, "2026-05-03 10:00:00", "Anna in Porto")])
    run(spec, connect_server)
    again = read(connect, "scored_messages")
    assert sorted(row.id for row in again) == [1, 2, 3, 4, 5]
    assert {row.id: row for row in again if row.id != 5} == before
    assert sum(row.messages for row in read(connect, "daily_sentiment")) == 4
