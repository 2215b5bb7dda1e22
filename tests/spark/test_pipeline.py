"""The declarative pipeline, run for real by open-source spark-pipelines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import lakescore
from lakescore.session import DELTA_SETTINGS, LAPTOP_SETTINGS
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
pytest.importorskip("pyspark.pipelines", reason="pyspark.pipelines came with Spark 4.1")
ROWS = [
    (1, "2026-05-01 10:00:00", "Maria lives in Lisbon"),
    (2, "2026-05-01 11:00:00", "so late,\x01 again!"),
    (3, "2026-05-02 09:00:00", None),
    (4, "2026-05-02 10:00:00", "Lisbon is late"),
    (None, "2026-05-02 11:00:00", "whose is this"),
]


def add(spark: "SparkSession", path: Path, rows: list[Any]) -> None:
    frame = spark.createDataFrame(rows, "`the id` int, said string, text string")
    writer = frame.coalesce(1).write.format("delta").mode("append")
    writer.option("delta.columnMapping.mode", "name").save(str(path))


@pytest.fixture
def spec(tmp_path: Path, entity_model: Path, sentiment_model: Path) -> Path:
    """The spec of a pipeline over the table `source`, whose tables are in `warehouse`."""
    file = tmp_path / "spark-pipeline.yml"
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    settings = DELTA_SETTINGS | {
        "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
        "lakescore.source": f"delta.`{tmp_path}/source`",
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


def run(spec: Path) -> None:
    import pyspark
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    builder = configure_spark_with_delta_pip(SparkSession.builder)
    packages = builder._options["spark.jars.packages"]
    # Tables are known from one run to the next by a metastore, as on Databricks.
    store = f"jdbc:derby:{spec.parent}/metastore;create=true"
    start = LAPTOP_SETTINGS | {
        "spark.sql.catalogImplementation": "hive",
        "spark.hadoop.javax.jdo.option.ConnectionURL": store,
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={spec.parent}",
    }
    home = Path(pyspark.__file__).parent
    paths = [str(ROOT / "lib"), str(ROOT)]
    done = subprocess.run(
        [
            str(home / "bin/spark-pipelines"),
            *("--remote", "local[2]", "--packages", packages),
            *(word for name, value in start.items() for word in ("--conf", f"{name}={value}")),
            "run",
            "--spec",
            str(spec),
        ],
        cwd=spec.parent,
        env=os.environ
        | {"SPARK_HOME": str(home), "PYSPARK_PYTHON": sys.executable}
        | {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    (spec.parent / "printed").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:]


def read(spark: "SparkSession", spec: Path, table: str) -> Any:
    return spark.read.parquet(str(spec.parent / "warehouse" / table))


def test_each_row_is_scored_once_and_what_follows_is_right(
    spark: "SparkSession", spec: Path, entity_model: Path, sentiment_model: Path
) -> None:
    source = spec.parent / "source"
    add(spark, source, ROWS)
    run(spec)
    models = {
        "entities": {"model": str(entity_model)},
        "sentiment": {"model": str(sentiment_model)},
    }
    rows = spark.createDataFrame(
        [(row[0], (row[2] or "").replace("\x01", " ") or None) for row in ROWS[:4]],
        "id int, text string",
    )
    config = lakescore.JobConfig.parse({"tasks": models})
    expected = sorted(lakescore.score(rows, config).collect())
    found = read(spark, spec, "scored_messages")
    assert sorted(found.drop("said_at").collect()) == expected
    assert {row.error.code for row in found.collect() if row.error} == {"null_text"}

    entities = read(spark, spec, "message_entities")
    assert entities.columns == [
        "id", "said_at", "entity_group", "word", "score", "start", "end",
    ]  # fmt: skip
    assert entities.count() == sum(len(row.entities or ()) for row in expected) > 0
    days = read(spark, spec, "daily_sentiment").collect()
    assert {str(row.day): 0 for row in days}.keys() == {"2026-05-01", "2026-05-02"}
    assert sum(row.messages for row in days) == 3

    run_id = {row.id: row for row in found.collect()}
    add(spark, source, [(5, "2026-05-03 10:00:00", "Anna in Porto")])
    run(spec)
    again = read(spark, spec, "scored_messages").collect()
    assert sorted(row.id for row in again) == [1, 2, 3, 4, 5]
    assert {row.id: row for row in again if row.id != 5} == run_id
    assert sum(row.messages for row in read(spark, spec, "daily_sentiment").collect()) == 4
