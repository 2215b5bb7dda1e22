"""All that works on Spark Connect, against a real server: columns, score, the job by snapshots.

So do the files in jobs/ and the declarative pipeline. What it has not is an error of one line.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import lakescore
from lakescore import JobConfig, SetupError, TableError
from tests.conftest import HAS_DELTA, ROOT
from tests.jobs import NOW, ROWS
from tests.spark.conftest import ConnectServer
from tests.spark.test_job_files import do_every_job

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


@pytest.fixture
def settings(
    connect: "SparkSession", tmp_path: Path, entity_model: Path, sentiment_model: Path
) -> dict[str, Any]:
    """A job by snapshots; its source has the tests' rows."""
    frame = connect.createDataFrame(ROWS, "id long, text string")
    frame.write.format("delta").save(f"{tmp_path}/source")
    return {
        "source": {"table": f"{tmp_path}/source", "key": "id", "changes": "snapshot"},
        "target": {"table": f"{tmp_path}/target"},
        "tasks": {
            "entities": {"model": str(entity_model)},
            "sentiment": {"model": str(sentiment_model)},
        },
        "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "connect"},
    }


def run(connect: "SparkSession", settings: dict[str, Any]) -> lakescore.RunSummary:
    config = JobConfig.parse(settings)
    return lakescore.score_table(connect, config, now=NOW)


def shown(scored: Any) -> list[Any]:
    """What rows say; as the last column, how positive a text is."""
    return (
        scored.selectExpr(
            "id",
            "text",
            "transform(entities, e -> struct(e.entity_group, e.word, e.start, e.end)) AS entities",
            "error.code",
            "if(sentiment.label = 'positive', sentiment.score, 1 - sentiment.score) AS positive",
        )
        .orderBy("id")
        .collect()
    )


def rows(connect: "SparkSession", settings: dict[str, Any]) -> list[Any]:
    return shown(connect.read.format("delta").load(settings["target"]["table"]))


def expected(connect: "SparkSession", settings: dict[str, Any]) -> list[Any]:
    source = connect.read.format("delta").load(settings["source"]["table"])
    return shown(lakescore.score(source, JobConfig.parse(settings)))


def test_columns_and_sql_give_what_score_gives(
    connect: "SparkSession", entity_model: Path, sentiment_model: Path
) -> None:
    models = {"entities": str(entity_model), "sentiment": str(sentiment_model)}
    texts = connect.createDataFrame(ROWS, "id long, text string")
    entities = lakescore.entities(models["entities"], spark=connect)
    scores = lakescore.scores(**models, spark=connect)
    config = JobConfig.parse({"tasks": {task: {"model": at} for task, at in models.items()}})
    whole = lakescore.score(texts, config).orderBy("id").collect()
    chosen = texts.select("id", entities("text").alias("e"), scores("text").alias("s"))
    columns = chosen.orderBy("id").collect()
    assert [row.e for row in columns] == [row.entities for row in whole]
    assert [row.s.sentiment for row in columns] == [row.sentiment for row in whole]
    assert [row.s.error for row in columns] == [row.error for row in whole]
    connect.udf.register("entities", entities)
    texts.createOrReplaceTempView("texts")
    counted = connect.sql("SELECT count(entities(text)) FROM texts").collect()
    assert counted[0][0] == sum(row.error is None for row in whole)


@pytest.mark.delta
def test_a_table_of_the_catalog_is_overwritten(
    connect: "SparkSession", settings: dict[str, Any], tmp_path: Path
) -> None:
    source = connect.read.format("delta").load(settings["source"]["table"])
    source.write.format("delta").saveAsTable("words")
    settings["source"]["table"] = "words"
    settings["target"] = {
        "table": "scored_words", "checkpoint": f"{tmp_path}/checkpoint", "write": "overwrite",
    }  # fmt: skip
    assert run(connect, settings).rows_in == len(ROWS)
    scored = connect.table("scored_words")
    scored.write.format("delta").partitionBy("n_tokens").saveAsTable("divided_words")
    connect.sql("DELETE FROM words WHERE text IS NULL")  # with them a partition goes
    kept = [row[0] for row in ROWS if row[1] is not None]
    settings["target"]["table"] = "divided_words"
    connect.conf.set("spark.sql.sources.partitionOverwriteMode", "dynamic")
    try:
        assert run(connect, settings).rows_in == len(kept)
    finally:
        connect.conf.unset("spark.sql.sources.partitionOverwriteMode")
    assert sorted(row.id for row in connect.table("divided_words").collect()) == kept


@pytest.mark.delta
def test_a_stream_is_refused_in_one_line(connect: "SparkSession", settings: dict[str, Any]) -> None:
    for changes in ("append", "cdf"):
        settings["source"]["changes"] = changes
        with pytest.raises(SetupError) as refused:
            run(connect, settings)
        assert re.fullmatch(
            rf"source.changes is {changes}, a stream, which lakescore does not run on Spark "
            r"Connect .*; set it to snapshot, or run the job in dedicated access mode",
            str(refused.value),
        )


@pytest.mark.delta
def test_a_checkpoint_that_could_not_be_removed_is_refused_before_a_text_is_in_it(
    connect: "SparkSession", settings: dict[str, Any], tmp_path: Path
) -> None:
    for folder, message in (
        # The server sees it, and this process does not by this name.
        (f"file:{tmp_path}/checkpoint", r"is not on the machine of this .*; let target.checkpoint"),
        ("nowhere://bucket/checkpoint", r"cannot be written \(.*\); name a folder"),
    ):
        settings["target"]["checkpoint"] = folder
        with pytest.raises(TableError, match=f"^{folder}: {message}"):
            run(connect, settings)
    assert not (tmp_path / "target").exists()


@pytest.mark.delta
def test_every_job_file_does_its_work_on_the_server(
    connect: "SparkSession", connect_server: ConnectServer, library: Path, tmp_path: Path
) -> None:
    settings = do_every_job(library, tmp_path, "snapshot", server=connect_server.url)
    for found, clean in zip(rows(connect, settings), expected(connect, settings), strict=True):
        assert found[:-1] == clean[:-1]
        # Scores differ in their last digits by how texts were batched.
        assert found.positive == pytest.approx(clean.positive, abs=1e-3)
    bills = connect.read.format("delta").load(settings["target"]["table"] + "_runs")
    billed = bills.orderBy("ended_at").select("command", "status", "rows_in").collect()
    done = [("score", 40), ("score", 10), ("score", 1), ("retry", 2), ("rescore", 48)]
    assert billed == [(command, "finished", count) for command, count in done]


MESSAGES = [
    (1, "2026-05-01 10:00:00", "Maria lives in Lisbon"),
    (2, "2026-05-02 11:00:00", "so late,\x01 again!"),
    (3, "2026-05-02 09:00:00", None),
    (4, "at noon", "Lisbon is late"),
    (None, "2026-05-02 11:00:00", "whose is this"),
]


def add_messages(spark: "SparkSession", rows: list[Any]) -> None:
    frame = spark.createDataFrame(rows, "`the.id` int, said string, `the.text` string")
    writer = frame.coalesce(1).write.format("delta" if HAS_DELTA else "parquet").mode("append")
    writer.option("delta.columnMapping.mode", "name").saveAsTable("messages")


@pytest.fixture
def spec(tmp_path: Path, entity_model: Path, sentiment_model: Path) -> Path:
    """The spec of a pipeline over the messages' table."""
    file = tmp_path / "spark-pipeline.yml"
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    settings = {
        "lakescore.source": "messages",
        "lakescore.key": "the.id",
        "lakescore.time": "said",
        "lakescore.text": "the.text",
        "lakescore.registry": f"sqlite:///{tmp_path}/mlflow.db",
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


def run_pipeline(spec: Path, server: ConnectServer, library: Path) -> None:
    import pyspark

    home = Path(pyspark.__file__).parent
    own = {"SPARK_HOME": str(home), "PYSPARK_PYTHON": sys.executable}
    own["PYTHONPATH"] = str(library)
    command = ["bin/spark-pipelines", "--remote", server.url, "run", "--spec", str(spec)]
    done = subprocess.run(command, cwd=home, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def refreshed(connect: "SparkSession", table: str) -> list[Any]:
    connect.catalog.refreshTable(table)  # its Parquet files were listed before the second run
    return connect.table(table).collect()


@pytest.mark.skipif(
    find_spec("pyspark.pipelines") is None, reason="pyspark.pipelines came with Spark 4.1"
)
def test_a_declarative_pipeline_scores_each_row_once_and_what_follows_is_right(
    connect: "SparkSession",
    connect_server: ConnectServer,
    library: Path,
    spec: Path,
    entity_model: Path,
    sentiment_model: Path,
) -> None:
    add_messages(connect, MESSAGES)
    run_pipeline(spec, connect_server, library)
    models = {
        "entities": {"model": str(entity_model)},
        "sentiment": {"model": str(sentiment_model)},
    }
    rows = connect.createDataFrame(
        [(row[0], (row[2] or "").replace("\x01", " ") or None) for row in MESSAGES[:4]],
        "id int, text string",
    )
    config = lakescore.JobConfig.parse({"tasks": models})
    expected_rows = sorted(lakescore.score(rows, config).collect())
    found = connect.table("scored_messages")
    assert sorted(found.drop("said_at").collect()) == expected_rows
    before = {row.id: row for row in found.collect()}
    assert {row.error.code for row in before.values() if row.error} == {"null_text"}

    entities = connect.table("message_entities")
    assert entities.columns == [
        "id", "said_at", "entity_group", "word", "score", "start", "end",
    ]  # fmt: skip
    each = [(row.id, *one) for row in expected_rows for one in row.entities or ()]
    assert sorted(entities.drop("said_at").collect()) == sorted(each) != []
    days = refreshed(connect, "daily_sentiment")
    scored = [row for row in before.values() if row.error is None]
    groups: dict[tuple[Any, str], list[float]] = {}
    for row in scored:
        day = row.said_at and row.said_at.date()
        groups.setdefault((day, row.sentiment.label), []).append(row.sentiment.score)
    assert {(row.day, row.label): row.messages for row in days} == {
        group: len(scores) for group, scores in groups.items()
    }
    for row in days:
        scores = groups[row.day, row.label]
        assert row.mean_score == pytest.approx(sum(scores) / len(scores))
    # "at noon" is of no day.
    assert sorted({str(row.day) for row in days}) == ["2026-05-01", "2026-05-02", "None"]

    add_messages(connect, [(5, "2026-05-03 10:00:00", "Anna in Porto")])
    run_pipeline(spec, connect_server, library)
    again = refreshed(connect, "scored_messages")
    assert sorted(row.id for row in again) == [1, 2, 3, 4, 5]
    assert {row.id: row for row in again if row.id != 5} == before
    assert sum(row.messages for row in refreshed(connect, "daily_sentiment")) == 4
