"""Names that are none, or hold SQL, in every place that takes one: nothing is carried out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    JobConfig,
    LakescoreError,
    ModelError,
    rescore_table,
    retry_table,
    score_table,
    tracking,
)
from lakescore.config import TaskName
from lakescore.evaluation import evaluate
from lakescore.finetune import FinetuneConfig, finetune
from lakescore.labelled import ColumnsConfig
from lakescore.purge import purge_target
from lakescore.report import write_report
from lakescore.snapshot import resolve
from tests.jobs import NOW, Run
from tests.spark.steps import add, content, follow

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]
# Of other such names tests/unit/test_tables.py has what becomes of them.
NAMES = [
    "main`.`x; DROP TABLE victim",
    "victim` VACUUM `victim",
    "delta.`/nowhere`; DROP TABLE victim; --",
    "/no/`; DROP TABLE victim; --`/where",
]


@pytest.fixture(scope="module", autouse=True)
def victim(spark: "SparkSession") -> Iterator[None]:
    columns = ["id", "'Anna' AS text", "array('Anna') AS tokens"]
    for table in ("victim", "prey"):  # of which one has no part of a name in its own
        spark.range(3).selectExpr(*columns).write.format("delta").saveAsTable(table)
    yield
    spark.sql("DROP TABLE victim")
    spark.sql("DROP TABLE prey")


def _job(function: Any, name: str, place: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        group, key = place.split(".")
        settings[group] |= {key: name}
        settings["target"].setdefault("checkpoint", settings["target"]["table"] + "_checkpoint")
        config = JobConfig.parse(settings)
        return function(spark, config, now=NOW)

    return start


def _purge(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        settings["target"] = {"table": name, "checkpoint": settings["source"]["table"] + "_c"}
        return purge_target(spark, JobConfig.parse(settings), retain_hours=0)

    return start


def _finetune(table: str, **columns: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        recipe = {
            "task": "sentiment",
            "base": settings["tasks"]["sentiment"]["model"],
            "output": settings["source"]["table"] + "_model",
            "labels": ["negative", "positive"],
            "train": {table: 1.0},
            "valid": {table: 1.0},
            "columns": columns,
            "mlflow": settings["mlflow"],
        }
        return finetune(spark, FinetuneConfig.parse(recipe))

    return start


def _evaluate(table: str, task: TaskName = "sentiment", **columns: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        model = settings["tasks"][task]["model"]
        return evaluate(spark, table, task=task, model=model, columns=ColumnsConfig(**columns))

    return start


def _report(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        return write_report(spark, name, Path(settings["source"]["table"] + ".html"))

    return start


def _report_key(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        table = settings["target"]["table"]
        return write_report(spark, table, Path(f"{table}.html"), key=[name])

    return start


PLACES: dict[str, Callable[[str], Callable[..., Any]]] = {
    "score, source.table": lambda name: _job(score_table, name, "source.table"),
    "score, target.table": lambda name: _job(score_table, name, "target.table"),
    "score, source.key": lambda name: _job(score_table, name, "source.key"),
    "score, source.text": lambda name: _job(score_table, name, "source.text"),
    "score, source.columns": lambda name: _job(score_table, name, "source.columns"),
    "rescore, source.table": lambda name: _job(rescore_table, name, "source.table"),
    "rescore, source.key": lambda name: _job(rescore_table, name, "source.key"),
    "rescore, target.table": lambda name: _job(rescore_table, name, "target.table"),
    "retry, source.table": lambda name: _job(retry_table, name, "source.table"),
    "retry, target.table": lambda name: _job(retry_table, name, "target.table"),
    "purge": _purge,
    "finetune": _finetune,
    "finetune, text": lambda name: _finetune("prey", text=name),
    "finetune, label": lambda name: _finetune("prey", label=name),
    "evaluate": _evaluate,
    "evaluate, text": lambda name: _evaluate("prey", text=name),
    "evaluate, label": lambda name: _evaluate("prey", label=name),
    "evaluate, tokens": lambda name: _evaluate("prey", "entities", tokens=name),
    "evaluate, tags": lambda name: _evaluate("prey", "entities", tags=name),
    "report": _report,
    "report, key": _report_key,
}


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize("place", PLACES)
def test_sql_in_a_name_is_not_carried_out(
    spark: "SparkSession",
    settings: dict[str, Any],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        is_target = name.startswith("/") and place == "score, target.table"
        if is_target:  # a path of such a name is one, and would be made
            continue
        given = {group: dict(values) for group, values in settings.items()}
        with pytest.raises(LakescoreError) as refused:
            PLACES[place](name)(spark, given)
        assert name.split("`")[-1] in str(refused.value)
        assert spark.table("victim").count() == 3


@pytest.mark.usefixtures("begun")
def test_a_report_by_a_text_column_that_is_none_is_one_without_texts(
    spark: "SparkSession", settings: dict[str, Any], tmp_path: Path
) -> None:
    report = write_report(
        spark, settings["target"]["table"], tmp_path / "report.html", text_column=NAMES[0]
    )
    assert "does not carry the texts, so none are shown" in report.read_text("utf-8")
    assert spark.table("victim").count() == 3


@pytest.mark.usefixtures("begun")
def test_a_model_is_registered_by_a_name_as_it_is_or_not_at_all(
    spark: "SparkSession",
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow keeps its artifacts beside where it is started
    tracking.configure(settings["mlflow"]["tracking_uri"], "tests")
    model = resolve(settings["tasks"]["sentiment"]["model"], task=None)
    for name in NAMES:
        if "/" in name:
            with pytest.raises(ModelError, match="cannot name a registered model"):
                tracking.register(model, name=name)
        else:
            assert tracking.register(model, name=name).name == name
    assert spark.table("victim").count() == 3


def test_a_path_with_the_signs_of_sql_and_of_a_pattern_is_only_a_path(
    spark: "SparkSession", settings: dict[str, Any], tmp_path: Path, run: Run
) -> None:
    source = settings["source"]["table"]
    target = f"{tmp_path}/it's[20]{{a}}*; DROP TABLE victim; --"
    settings["target"]["table"] = target
    run(settings)
    add(spark, source, [(100, "new")])
    assert run(settings).rows_in == 1
    notes = spark.sql(f"DESCRIBE HISTORY delta.`{target}`").where("userMetadata LIKE '%number%'")
    assert notes.count() == 2
    assert notes.where("userMetadata LIKE '%lakescore-None%'").count() == 0
    add(spark, source, [(101, "newer")])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 1")
    summary = run(follow(settings, "snapshot"))
    assert (summary.rows_in, summary.rows_deleted) == (1, 1)
    assert content(spark, target) == content(spark, source)
    assert not list(Path(f"{target}_checkpoint").glob("*/stream-*"))  # it has read the whole source
    assert spark.table("victim").count() == 3
