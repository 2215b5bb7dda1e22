"""Counting scored tables for the report, on a local Spark."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore.errors import ConfigError, TableError
from lakescore.report import Summary, plots, render, summarise, write_report
from lakescore.report.counting import FAILED_PER_CODE, SAMPLES
from lakescore.report.summary import BINS, Entity, FailedRow, Sample

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

ENTITIES = "array<struct<entity_group string, word string, score float, start int, end int>>"
SINGLE = "struct<label string, score float>"
MULTI = "array<struct<label string, score float>>"
REST = (
    "n_tokens int, error struct<code string, detail string>, model map<string,string>, "
    "run_id string, scored_at timestamp"
)
MODEL = {"entities": "models:/ner/3", "sentiment": "models:/mood/1"}
EARLY, LATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 4, tzinfo=UTC)
NULL = ("null_text", "the text is null")


def frame(spark: "SparkSession", rows: list[tuple[Any, ...]], sentiment: str) -> "DataFrame":
    """A scored table."""
    return spark.createDataFrame(
        rows, f"id bigint, text string, entities {ENTITIES}, sentiment {sentiment}, {REST}"
    ).coalesce(1)


def histogram(**counts: int) -> tuple[int, ...]:
    """Bins of scores: b19=2 is two in the last."""
    return tuple(counts.get(f"b{number}", 0) for number in range(BINS))


ANA = ("PER", "Ana Lima", 0.99, 0, 8)
FARO = ("LOC", "Faro", 0.61, 12, 16)
ROWS = [
    (1, "Ana Lima in Faro", [ANA, FARO], ("positive", 1.0), 8, None, MODEL, "r1", EARLY),
    (2, "Ana Lima in Faro", [ANA, FARO], ("positive", 0.52), 8, None, MODEL, "r1", EARLY),
    (3, "שלום לכולם, Ana", [], ("negative", 0.9), 7, None, MODEL, "r2", LATE),
    (4, "王芳", [], ("negative", 0.0), 600, None, MODEL, "r2", LATE),
    (5, "ok", [], ("negative", 0.97), 1, None, MODEL, "r2", LATE),
    (6, None, None, None, None, NULL, MODEL, "r2", LATE),
]


def test_a_table_is_counted(spark: "SparkSession") -> None:
    found = summarise(frame(spark, ROWS, SINGLE))
    entities = tuple(
        Entity(kind, pytest.approx(score), start, end) for kind, _, score, start, end in (ANA, FARO)
    )
    first = found.samples[0]
    assert found == Summary(
        rows=6,
        failed=1,
        tokens=624,
        longest=600,
        first_scored="2026-01-02 03:04:05",
        last_scored="2026-01-02 04:00:00",
        run_id="r2",
        runs={"r2": 4, "r1": 2},
        models={"entities": {"models:/ner/3": 6}, "sentiment": {"models:/mood/1": 6}},
        errors={"null_text": 1},
        token_bins={0: 1, 2: 1, 3: 2, 9: 1},
        entity_scores={"LOC": histogram(b12=2), "PER": histogram(b19=2)},
        sentiment_scores={
            "negative": histogram(b0=1, b17=1, b19=1),
            "positive": histogram(b10=1, b19=1),
        },
        sentiment_kind="single",
        sentiment_range=(0.0, 1.0),
        names={"LOC": (("Faro", 2),), "PER": (("Ana Lima", 2),)},
        has_text=True,
        samples=(
            Sample("named", first.key, "Ana Lima in Faro", 8, entities, first.sentiment),
            Sample("plain", "5", "ok", 1, (), (("negative", pytest.approx(0.97)),)),
            Sample("right_to_left", "3", ROWS[2][1], 7, (), (("negative", pytest.approx(0.9)),)),
            Sample("long", "4", "王芳", 600, (), (("negative", 0.0),)),
        ),
        failed_rows=(FailedRow("6", *NULL),),
    )
    assert found.labels == {"negative": 3, "positive": 2}
    assert found.entities == 4


def test_multi_label_sentiment_is_counted_by_label(spark: "SparkSession") -> None:
    both = [("rude", 0.5), ("toxic", 0.1)]
    rows = [(1, "a", [], both, 3, None, MODEL, "r", EARLY)] * 3
    found = summarise(frame(spark, rows, MULTI))
    assert found.sentiment_kind == "multi"
    assert found.sentiment_scores == {"rude": histogram(b10=3), "toxic": histogram(b2=3)}
    assert found.labels == {"rude": 3, "toxic": 0}


def test_regression_is_told_by_values_that_are_no_probabilities(spark: "SparkSession") -> None:
    values = [-2.0, 0.5, 8.0]
    rows = [(n, str(n), [], ("stars", v), 3, None, MODEL, "r", EARLY) for n, v in enumerate(values)]
    found = summarise(frame(spark, rows, SINGLE))
    assert (found.sentiment_kind, found.sentiment_range) == ("regression", (-2.0, 8.0))
    assert found.sentiment_scores == {"stars": histogram(b0=1, b5=1, b19=1)}


@pytest.mark.parametrize("rows", [[], [ROWS[-1]] * 9], ids=["empty", "all failed"])
def test_a_table_without_a_result_has_a_page(spark: "SparkSession", rows: list[Any]) -> None:
    found = summarise(frame(spark, rows, SINGLE))
    assert (found.rows, found.failed, found.entities, found.samples) == (
        len(rows),
        len(rows),
        0,
        (),
    )
    assert len(found.failed_rows) == min(len(rows), FAILED_PER_CODE)
    assert "<h1>" in render(found, plots(found), None, table="t")


def test_columns_that_are_not_there_are_not_needed(spark: "SparkSession") -> None:
    bare = frame(spark, ROWS, SINGLE).select("id", "n_tokens", "error")
    found = summarise(bare)
    assert found == Summary(
        rows=6,
        failed=1,
        tokens=624,
        longest=600,
        errors={"null_text": 1},
        token_bins={0: 1, 2: 1, 3: 2, 9: 1},
        has_text=False,
        failed_rows=(FailedRow("6", *NULL),),
    )


def test_odd_column_names_are_taken(spark: "SparkSession") -> None:
    odd = frame(spark, ROWS, SINGLE).withColumnRenamed("text", "the `text`.1")
    found = summarise(odd, text_column="the `text`.1", key=["id", "the `text`.1"])
    assert "5, ok" in {sample.key for sample in found.samples}
    assert found.failed_rows[0].key == "6, null"


def test_samples_are_bounded(spark: "SparkSession") -> None:
    rows = [(n, f"text {n}", [], ("negative", 0.9), 3, None, MODEL, "r", EARLY) for n in range(200)]
    assert len(summarise(frame(spark, rows, SINGLE)).samples) == SAMPLES["plain"]


def test_a_table_that_was_not_scored_is_refused(spark: "SparkSession") -> None:
    with pytest.raises(TableError, match="no column error, n_tokens; name the target of a score"):
        summarise(spark.range(1))


@pytest.fixture(scope="module")
def table(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Delta table, scored in no run that MLflow knows."""
    path = str(tmp_path_factory.mktemp("tables") / "scored")
    frame(spark, ROWS, SINGLE).drop("run_id").write.format("delta").save(path)
    return path


@pytest.mark.delta
def test_the_page_of_a_delta_table_is_written(
    spark: "SparkSession", table: str, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "report.html"
    assert write_report(spark, table, output) == output
    assert "שלום לכולם, Ana" in output.read_text("utf-8")


@pytest.mark.delta
def test_a_file_that_cannot_be_written_is_named(
    spark: "SparkSession", table: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="name a file that can be written"):
        write_report(spark, table, tmp_path)
