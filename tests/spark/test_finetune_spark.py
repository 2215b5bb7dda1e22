"""Labelled Delta and Parquet tables, through Spark, into a checkpoint and its figures in MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lakescore import tracking
from lakescore.config import MlflowConfig
from lakescore.errors import DataError, TableError
from lakescore.evaluation import EntityScores, Figures, SentimentScores, evaluate
from lakescore.finetune import finetune
from lakescore.finetune.recipe import FinetuneConfig
from lakescore.labelled import ColumnsConfig
from tests.tiny_models import ENTITY_LABELS, tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]

TOKENS = ["Maria", "Nowak", "flew", "from", "Lisbon", "."]
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]


@pytest.fixture
def mlflow_store(tmp_path: Path) -> MlflowConfig:
    return MlflowConfig(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")


@pytest.fixture
def labelled(spark: "SparkSession", tmp_path: Path) -> Path:
    frame = spark.createDataFrame([(TOKENS, TAGS)] * 8, "tokens array<string>, tags4 array<string>")
    frame.write.format("delta").save(str(tmp_path / "delta"))
    frame.coalesce(1).write.parquet(str(tmp_path / "rows.parquet"))
    return tmp_path


def test_a_checkpoint_is_made_from_tables_and_evaluated_with_its_figures_in_mlflow(
    spark: "SparkSession", labelled: Path, mlflow_store: MlflowConfig
) -> None:
    delta, parquet = str(labelled / "delta"), str(labelled / "rows.parquet")
    config = FinetuneConfig(
        task="entities",
        base=str(tiny_model(labelled / "base")),
        output=str(labelled / "out"),
        labels=ENTITY_LABELS,
        columns=ColumnsConfig(tags="tags4"),
        train={delta: 4.0, parquet: 1.0},
        valid={parquet: 1.0},
        epochs=8,
        learning_rate=0.02,
        token_budget=128,
        mlflow=mlflow_store,
    )
    made = finetune(spark, config)
    assert made.metrics[f"{labelled.name}/rows/micro_f1"] == 1.0
    assert made.mlflow_run_id is not None
    run = tracking.run_figures(made.mlflow_run_id)
    assert run is not None
    assert run.params["seed"] == "0"
    assert run.metrics["valid_mean"] > 0

    found = evaluate(
        spark,
        delta,
        task="entities",
        model=str(made.output),
        columns=ColumnsConfig(tags="tags4"),
        types=["PER"],
        mlflow=mlflow_store,
    )
    perfect = Figures(1.0, 1.0, 1.0, 8, 8)
    assert found.scores == EntityScores(micro=perfect, per_type={"PER": perfect})
    assert (found.rows, found.rows_failed) == (8, 0)
    run = tracking.run_figures(found.mlflow_run_id)
    assert run is not None
    assert run.metrics == found.as_metrics()
    assert run.params["types"] == "PER"


def test_a_row_that_cannot_be_scored_counts_as_wrong_in_an_evaluation(
    spark: "SparkSession", sentiment_model: Path, tmp_path: Path, mlflow_store: MlflowConfig
) -> None:
    rows = [("great", "positive"), ("   ", "negative")]
    table = str(tmp_path / "mood.parquet")
    spark.createDataFrame(rows, "text string, label string").coalesce(1).write.parquet(table)
    found = evaluate(
        spark, table, task="sentiment", model=str(sentiment_model), mlflow=mlflow_store
    )
    assert isinstance(found.scores, SentimentScores)
    assert (found.rows, found.rows_failed) == (2, 1)
    assert found.scores.per_label["negative"].recall == 0.0
    assert found.scores.accuracy in (0.0, 0.5)


def test_tables_that_are_missing_or_lack_a_column_are_named(
    spark: "SparkSession", labelled: Path, entity_model: Path
) -> None:
    there, missing = str(labelled / "rows.parquet"), str(labelled / "no.parquet")
    with pytest.raises(
        TableError, match=r"no\.parquet: no Delta table and no Parquet file or folder"
    ):
        evaluate(spark, missing, task="entities", model=str(entity_model))
    with pytest.raises(DataError, match=r"no column 'tags'; there are tokens, tags4"):
        evaluate(spark, there, task="entities", model=str(entity_model))
