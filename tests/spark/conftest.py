"""A source, a job's settings, and a way to run it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import JobConfig, RunSummary, score_table, tracking
from tests.jobs import NOW, ROWS, Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def source(spark: "SparkSession", tmp_path: Path) -> str:
    path = str(tmp_path / "source")
    frame = spark.createDataFrame(ROWS, "id long, text string")
    frame.write.format("delta").save(path)
    return path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to copy it takes less than to make one for each test."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.configure(f"sqlite:///{store}", None)
    return store


@pytest.fixture
def settings(
    source: str, tmp_path: Path, entity_model: Path, sentiment_model: Path, empty_store: Path
) -> dict[str, Any]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return {
        "source": {"table": source, "key": "id", "partitions": 2},
        "target": {"table": str(tmp_path / "target")},
        "tasks": {
            "entities": {"model": str(entity_model)},
            "sentiment": {"model": str(sentiment_model)},
        },
        "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "tests"},
    }


@pytest.fixture
def run(spark: "SparkSession", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)  # MLflow keeps its artifacts beside where it is started

    def score(
        settings: dict[str, Any], progress: list[tuple[int, int | None]] | None = None
    ) -> RunSummary:
        seen = [] if progress is None else progress
        job = JobConfig.parse(settings)
        return score_table(spark, job, now=NOW, progress=lambda *at: seen.append(at))

    return score
