"""All that works on Spark Connect, against a real server: columns, score, the job by snapshots.

What Connect has not is an error of one line.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lakescore
from lakescore import JobConfig, SetupError
from lakescore.purge import purge_target
from tests.jobs import NOW, ROWS
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


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


def run(connect: "SparkSession", settings: dict[str, Any], command: str = "score") -> Any:
    command = {"score": "score_table", "rescore": "rescore_table", "retry": "retry_table"}[command]
    config = JobConfig.parse(settings)
    return getattr(lakescore, command)(connect, config, now=NOW, progress=lambda done, total: None)


def shown(scored: Any) -> list[Any]:
    """What rows say: scores differ in their last digits by how texts were batched."""
    return (
        scored.selectExpr(
            "id",
            "text",
            "transform(entities, e -> struct(e.entity_group, e.word, e.start, e.end)) AS entities",
            "sentiment.label",
            "error.code",
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
    connect: "SparkSession", settings: dict[str, Any]
) -> None:
    models = {task: each["model"] for task, each in settings["tasks"].items()}
    texts = connect.read.format("delta").load(settings["source"]["table"])
    entities = lakescore.entities(models["entities"], spark=connect)
    scores = lakescore.scores(**models, spark=connect)
    config = JobConfig.parse(settings)
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


def test_the_job_scores_what_differs_and_a_rerun_nothing(
    connect: "SparkSession", settings: dict[str, Any]
) -> None:
    table = f"delta.`{settings['source']['table']}`"
    first = run(connect, settings)
    failed = sum(text is None for _, text in ROWS)
    assert (first.rows_in, first.rows_failed) == (len(ROWS), {"null_text": failed})
    assert rows(connect, settings) == expected(connect, settings)
    assert run(connect, settings).rows_in == 0

    connect.sql(f"INSERT INTO {table} VALUES (100, 'Anna in Porto'), (101, NULL)")
    connect.sql(f"UPDATE {table} SET text = 'Now in Faro' WHERE id IN (3, 4)")
    connect.sql(f"DELETE FROM {table} WHERE id IN (5, 6, 7)")
    second = run(connect, settings)
    assert (second.rows_in, second.rows_failed, second.rows_deleted) == (4, {"null_text": 1}, 3)
    assert rows(connect, settings) == expected(connect, settings)
    bills = connect.read.format("delta").load(settings["target"]["table"] + "_runs")
    billed = bills.orderBy("ended_at").select("status", "rows_in").collect()
    assert billed == [("finished", len(ROWS)), ("finished", 0), ("finished", 4)]


def test_a_table_of_the_catalog_is_overwritten_rescored_retried_and_purged(
    connect: "SparkSession", settings: dict[str, Any], tmp_path: Path
) -> None:
    source = connect.read.format("delta").load(settings["source"]["table"])
    source.write.format("delta").saveAsTable("words")
    settings["source"]["table"] = "words"
    settings["target"] = {
        "table": "scored_words", "checkpoint": f"{tmp_path}/checkpoint", "write": "overwrite",
    }  # fmt: skip
    assert run(connect, settings).rows_in == len(ROWS)
    settings["target"]["write"] = "merge"
    connect.sql(
        "UPDATE scored_words SET sentiment = NULL, entities = NULL, "
        "error = named_struct('code', 'worker_lost', 'detail', 'gone') WHERE id IN (1, 2)"
    )
    assert run(connect, settings, "retry").rows_scored == 2
    other = tiny_model(tmp_path / "other", head="sequence-classification", seed=9)
    settings["tasks"]["sentiment"] = {"model": str(other)}
    assert run(connect, settings, "rescore").rows_in == len(ROWS)
    assert run(connect, settings, "rescore").rows_in == 0
    connect.sql("DELETE FROM words WHERE id < 10")
    assert run(connect, settings).rows_deleted == 10
    purged = purge_target(connect, JobConfig.parse(settings), retain_hours=0)
    assert purged.target == "scored_words"
    assert connect.table("scored_words").count() == len(ROWS) - 10


@pytest.mark.parametrize("changes", ["append", "cdf"])
def test_a_stream_is_refused_in_one_line(
    connect: "SparkSession", settings: dict[str, Any], changes: str
) -> None:
    settings["source"]["changes"] = changes
    with pytest.raises(SetupError) as refused:
        run(connect, settings)
    assert re.fullmatch(
        rf"source.changes is {changes}, a stream, which Spark Connect .* does not have; set it to "
        r"snapshot, or run the job in dedicated access mode",
        str(refused.value),
    )
