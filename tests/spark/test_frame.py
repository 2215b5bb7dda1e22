from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lakescore
from lakescore import JobConfig, TableError, tracking
from lakescore.snapshot import resolve

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


@pytest.fixture
def tasks(entity_model: Path, sentiment_model: Path) -> dict[str, Any]:
    return {
        "entities": {"model": str(entity_model)},
        "sentiment": {"model": str(sentiment_model)},
    }


def config(tasks: dict[str, Any], **source: Any) -> JobConfig:
    return JobConfig.parse({"source": source, "tasks": tasks})


def test_every_row_comes_back_with_its_columns_and_results(
    spark: "SparkSession", tasks: dict[str, Any]
) -> None:
    rows = [
        (nth, f"Maria {nth % 7} in Lisbon" if nth % 5 else None, nth * 0.5) for nth in range(500)
    ]
    frame = spark.createDataFrame(rows, "id int, text string, `odd.name` double").repartition(3)
    scored = lakescore.score(frame, config(tasks))
    assert scored.columns == [
        "id", "text", "odd.name", "entities", "sentiment", "n_tokens", "error", "model",
    ]  # fmt: skip
    found = sorted(scored.collect(), key=lambda row: row.id)
    assert [(row.id, row.text, row["odd.name"]) for row in found] == rows
    for row in found:
        is_null = row.id % 5 == 0
        assert (row.error is not None) == is_null
        assert (row.entities is None, row.sentiment is None) == (is_null, is_null)
        assert (row.n_tokens == 0) == is_null
    assert found[0].error.asDict() == {"code": "null_text", "detail": "the text is null"}
    assert found[1].model.keys() == {"entities", "sentiment"}
    assert found[1].model["entities"].startswith("sha256:")


def test_columns_choose_what_is_carried(spark: "SparkSession", tasks: dict[str, Any]) -> None:
    frame = spark.createDataFrame([(1, "a", "x", "y")], "id int, text string, b string, c string")
    scored = lakescore.score(frame, config(tasks, key="id", columns=["c"]))
    assert scored.columns[:3] == ["id", "c", "entities"]


def test_the_types_of_carried_columns_stay(spark: "SparkSession", tasks: dict[str, Any]) -> None:
    frame = spark.sql(
        "select 1 id, 'Anna' text, timestamp'2026-01-02 03:04:05' t, date'2026-01-02' d, "
        "cast(1.5 as decimal(10,3)) n, map('a', array(1)) m, named_struct('x', null) s"
    )
    scored = lakescore.score(frame, config(tasks)).select(frame.columns)
    assert scored.dtypes == frame.dtypes
    assert scored.collect() == frame.collect()


def test_an_empty_table_gives_an_empty_table(spark: "SparkSession", tasks: dict[str, Any]) -> None:
    frame = spark.createDataFrame([], "id int, text string")
    assert lakescore.score(frame, config(tasks)).collect() == []


@pytest.mark.parametrize(
    ("schema", "source", "message"),
    [
        (
            "id int, body string",
            {},
            "source.text: no column 'text'; there are id, body",
        ),
        ("id int, text int", {}, "source.text: column 'text' is int, not string; cast it"),
        ("text string", {"key": "id"}, "source.key: no column 'id'; there are text"),
        (
            "id int, text string",
            {"columns": ["c"]},
            "source.columns: no column 'c'; there are id, text",
        ),
        (
            "id int, text string, Entities int",
            {},
            "source column 'Entities' has the name of a column that scoring adds; rename it, or "
            "leave it out of source.columns",
        ),
        (
            "id int, labels map<string, int>, text string",
            {"key": ["id", "labels"]},
            "source.key: column 'labels' is map<string,int>, which cannot be compared; name other "
            "columns",
        ),
        *(
            (
                f"id int, text string, {name} string",
                source,
                f"source column '{name}' has the name of a column that scoring adds; rename it, "
                "or leave it out of source.columns",
            )
            for name, source in [
                ("_text", {}),
                ("_step", {}),
                ("_Change", {}),
                ("_change", {"text": "_change", "columns": ["id"]}),
            ]
        ),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_before_any_task_runs(
    spark: "SparkSession",
    tasks: dict[str, Any],
    schema: str,
    source: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(TableError) as raised:
        lakescore.score(spark.createDataFrame([], schema), config(tasks, **source))
    assert str(raised.value) == message


@pytest.fixture
def _tracking_as_before() -> Iterator[None]:
    """MLflow's store is the whole process's."""
    mlflow = pytest.importorskip("mlflow")
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("_tracking_as_before")
def test_models_are_found_in_the_mlflow_that_the_configuration_names(
    spark: "SparkSession", entity_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow keeps its artifacts beside where it is started
    own, other = (f"sqlite:///{tmp_path}/{name}.db" for name in ("own", "other"))
    tracking.configure(own, "tests")
    tracking.register(resolve(str(entity_model), task=None), name="ner", alias="champion")
    tracking.configure(other, None)
    named = JobConfig.parse(
        {
            "tasks": {"entities": {"model": "models:/ner@champion"}},
            "mlflow": {"tracking_uri": own},
        }
    )
    [row] = lakescore.score(spark.createDataFrame([("Maria",)], "text string"), named).collect()
    assert row.model == {"entities": "models:/ner/1"}
