"""Each notebook, from top to bottom, on a table of the demo's messages."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.make_table import SCHEMA, labelled
from demo.messages import messages
from lakescore import session
from scripts.run_notebook import cells, main
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.jobs import Run

pytestmark = [pytest.mark.spark, pytest.mark.delta]
MODELS = {task: str(ROOT / "models" / task) for task in ("entities", "sentiment")}


@pytest.fixture
def notebook(spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook as its users would, in the tests' Spark; return its page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "local_session", lambda name: contextlib.nullcontext(spark))

    def run(name: str, expected: int = 0, **widgets: str) -> str:
        given = [f"--widget={key}={value}" for key, value in widgets.items()]
        assert main([str(ROOT / "notebooks" / f"{name}.py"), *given]) == expected
        return (tmp_path / "reports" / f"{name}.html").read_text("utf-8")

    return run


@pytest.fixture
def table(spark: "SparkSession", tmp_path: Path) -> str:
    path = str(tmp_path / "messages")
    frame = spark.createDataFrame([tuple(row) for row in messages(60, seed=7)], SCHEMA)
    # Columns of names that are to be quoted wherever they are named.
    frame = frame.withColumnsRenamed({name: f"the.{name}" for name in ("id", "text", "channel")})
    frame.coalesce(1).write.format("delta").save(path)
    return path


def test_explore_shows_entities_in_the_texts_and_sentiment_by_group(
    notebook: Any, table: str
) -> None:
    columns = {"key": "the.id", "text": "the.text", "group": "the.channel"}
    page = notebook("01_explore", table=table, rows="40", **columns, **MODELS)
    assert "40 rows, " in page
    assert page.count("<mark ") > 10
    assert page.count("<img ") == 1
    assert re.search(r"<td>(PER|LOC|ORG)</td>\s*<td>0\.\d+</td>", page)


def test_tune_recommends_settings_that_a_configuration_takes(
    notebook: Any, table: str, entity_model: Path, sentiment_model: Path
) -> None:
    page = notebook(
        "02_tune",
        table=table,
        text="the.text",
        rows="30",
        repeats="1",
        dtypes="float32, bfloat16",
        budgets="default",
        partitions="1, 2",
        entities=str(entity_model),
        sentiment=str(sentiment_model),
    )
    assert page.count("<img ") == 1
    recommended = re.search(
        r"encoding:\n  dtype: (float32|bfloat16)\nsource:\n  partitions: \d", page
    )
    assert recommended
    assert "same label" in page


def test_errors_says_what_failed_and_what_the_model_misses(
    notebook: Any, spark: "SparkSession", table: str, run: "Run", settings: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    settings["source"] = {"table": table, "key": "the.id", "text": "the.text", "partitions": 2}
    summary = run(settings)
    assert summary.rows_failed
    sentences = list(labelled())
    columns = "`its.tokens` array<string>, `its.tags` array<string>"
    rows = spark.createDataFrame(sentences, columns)
    rows.coalesce(1).write.format("delta").save(str(tmp_path / "labelled"))
    page = notebook(
        "03_errors",
        target=settings["target"]["table"],
        key="the.id",
        labelled=str(tmp_path / "labelled"),
        tokens="its.tokens",
        tags="its.tags",
        entities=MODELS["entities"],
    )
    for code in summary.rows_failed:
        assert code in page
    assert "fill it at the source" in page
    assert page.count("<img ") == 1
    assert f"of {len(sentences)} sentences differ" in page


def test_a_cell_that_raises_ends_the_run_and_is_shown(
    notebook: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = notebook("01_explore", expected=1, table=f"{tmp_path}/none")
    assert "TableError" in page
    assert "Entities, where they stand" not in page
    lines = (ROOT / "notebooks/01_explore.py").read_text("utf-8").splitlines()
    line = 1 + next(nth for nth, line in enumerate(lines) if "load(spark" in line)
    assert f"01_explore.py&quot;, line {line}," in page  # of the file, not of the cell
    assert "no Delta table under this path" in capsys.readouterr().err


def test_what_is_no_notebook_is_refused() -> None:
    with pytest.raises(SystemExit, match="does not begin with '# Databricks notebook source'"):
        list(cells("print(1)\n", "x.py"))
    with pytest.raises(SystemExit, match=r"x\.py, line 2: %sql is known on Databricks alone"):
        list(cells("# Databricks notebook source\n# MAGIC %sql SELECT 1\n", "x.py"))
