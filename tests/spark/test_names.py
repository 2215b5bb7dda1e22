"""Names that are none, or hold SQL, in every place that takes one: nothing is carried out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import JobConfig, LakescoreError, rescore_table, retry_table, score_table
from lakescore.evaluation import evaluate
from lakescore.finetune import FinetuneConfig, finetune
from lakescore.labelled import ColumnsConfig
from lakescore.purge import purge_target
from lakescore.report import write_report
from tests.jobs import NOW

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
    spark.range(3).write.format("delta").saveAsTable("victim")
    yield
    spark.sql("DROP TABLE victim")


def _job(function: Any, name: str, place: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        group, key = place.split(".")
        settings[group] |= {key: name}
        settings["target"].setdefault("checkpoint", settings["target"]["table"] + "_checkpoint")
        config = JobConfig.parse(settings)
        return function(spark, config, now=NOW, progress=lambda done, total: None)

    return start


def _purge(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        settings["target"] = {"table": name, "checkpoint": settings["source"]["table"] + "_c"}
        return purge_target(spark, JobConfig.parse(settings), retain_hours=0)

    return start


def _finetune(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        recipe = {
            "task": "sentiment",
            "base": settings["tasks"]["sentiment"]["model"],
            "output": settings["source"]["table"] + "_model",
            "labels": ["negative", "positive"],
            "train": {name: 1.0},
            "valid": {name: 1.0},
            "mlflow": settings["mlflow"],
        }
        return finetune(spark, FinetuneConfig.parse(recipe))

    return start


def _evaluate(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        model = settings["tasks"]["sentiment"]["model"]
        return evaluate(spark, name, task="sentiment", model=model)

    return start


def _evaluate_column(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        model, table = settings["tasks"]["sentiment"]["model"], settings["source"]["table"]
        columns = ColumnsConfig(text=name)
        return evaluate(spark, table, task="sentiment", model=model, columns=columns)

    return start


def _report(name: str) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        return write_report(spark, name, Path(settings["source"]["table"] + ".html"))

    return start


def _report_column(name: str, **column: Any) -> Callable[..., Any]:
    def start(spark: "SparkSession", settings: dict[str, Any]) -> Any:
        table = settings["target"]["table"]
        if not Path(table).exists():
            score_table(spark, JobConfig.parse(settings), now=NOW, progress=lambda *at: None)
        return write_report(spark, table, Path(f"{table}.html"), **column)

    return start


PLACES: dict[str, Callable[[str], Callable[..., Any]]] = {
    "score, source.table": lambda name: _job(score_table, name, "source.table"),
    "score, target.table": lambda name: _job(score_table, name, "target.table"),
    "score, source.key": lambda name: _job(score_table, name, "source.key"),
    "score, source.text": lambda name: _job(score_table, name, "source.text"),
    "score, source.columns": lambda name: _job(score_table, name, "source.columns"),
    "rescore, source.table": lambda name: _job(rescore_table, name, "source.table"),
    "rescore, target.table": lambda name: _job(rescore_table, name, "target.table"),
    "retry, source.table": lambda name: _job(retry_table, name, "source.table"),
    "purge": _purge,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "evaluate, text": _evaluate_column,
    "report": _report,
    "report, text": lambda name: _report_column(name, text_column=name),
    "report, key": lambda name: _report_column(name, key=[name]),
}


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
        if place == "report, text":  # of a table without its texts there is a report, too
            PLACES[place](name)(spark, given)
        else:
            with pytest.raises(LakescoreError) as refused:
                PLACES[place](name)(spark, given)
            assert name.split("`")[-1] in str(refused.value)
        assert spark.table("victim").count() == 3


def test_a_path_with_quotes_and_semicolons_is_only_a_path(
    spark: "SparkSession", settings: dict[str, Any], tmp_path: Path, run: Any
) -> None:
    odd = f"{tmp_path}/it's; DROP TABLE victim; --"
    settings["target"]["table"] = odd
    rows = run(settings).rows_in
    settings["source"] |= {"changes": "snapshot"}
    spark.sql(f"DELETE FROM delta.`{settings['source']['table']}` WHERE id = 1")
    assert run(settings).rows_deleted == 1
    assert spark.read.format("delta").load(odd).count() == rows - 1
    assert spark.table("victim").count() == 3
