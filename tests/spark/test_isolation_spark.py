"""Texts that kill their Python worker, in a Spark that tries a task again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lakescore
from tests.conftest import POISON

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

ROWS = {nth: f"Maria {nth} lives in Lisbon {'far ' * (nth % 7)}" for nth in range(200)}
# Two in one partition, next to each other and apart.
POISONED = {30, 31, 77}
LOST = {"code": "worker_lost", "detail": "the process that scored this text died of it"}


def near(value: Any) -> Any:
    """What equals `value` but for the last digits of scores.

    They depend on which texts are in a batch together: a piece of a column has other batches.
    """
    if isinstance(value, dict):
        return {name: near(each) for name, each in value.items()}
    if isinstance(value, list):
        return [near(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def frame(spark: "SparkSession", texts: dict[int, str]) -> "DataFrame":
    made = spark.createDataFrame(list(texts.items()), "id long, text string")
    return made.repartitionByRange(2, "id")


def poisoned(texts: dict[int, str]) -> dict[int, str]:
    return {nth: text + f" {POISON}" * (nth in POISONED) for nth, text in texts.items()}


def collected(rows: "DataFrame") -> dict[int, dict[str, Any]]:
    return {row.id: row.asDict(recursive=True) | {"text": None} for row in rows.collect()}


def test_texts_that_kill_their_worker_fail_alone_and_all_others_are_scored(
    spark: "SparkSession", entity_model: Path, sentiment_model: Path
) -> None:
    tasks = {"entities": {"model": str(entity_model)}, "sentiment": {"model": str(sentiment_model)}}
    config = lakescore.JobConfig.parse({"source": {"key": "id"}, "tasks": tasks})
    clean = collected(lakescore.score(frame(spark, ROWS), config))
    found = collected(lakescore.score(frame(spark, poisoned(ROWS)), config))
    assert {row for row in found if found[row]["error"]} == POISONED
    for row in POISONED:
        failed = {"entities": None, "sentiment": None, "n_tokens": 0, "error": LOST}
        assert found[row] == clean[row] | failed
    others = clean.keys() - POISONED
    assert len(others) == len(ROWS) - len(POISONED)
    assert {row: found[row] for row in others} == {row: near(clean[row]) for row in others}


def test_a_column_gives_null_for_such_a_text_and_the_same_for_others(
    spark: "SparkSession", entity_model: Path
) -> None:
    few = {nth: ROWS[nth] for nth in range(31, 35)}
    entities = lakescore.entities(str(entity_model))

    def found(texts: dict[int, str]) -> dict[int, Any]:
        rows = frame(spark, texts).coalesce(1).select("id", entities("text").alias("entities"))
        return {row.id: row.asDict(recursive=True)["entities"] for row in rows.collect()}

    expected = {nth: near(each) for nth, each in found(few).items()}
    assert found(poisoned(few)) == expected | {31: None}
