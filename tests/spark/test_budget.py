"""Many rows, some of them bad: each is there once, or none is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lakescore import JobConfig, score_table
from tests.conftest import ROOT
from tests.jobs import NOW, brief_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]
ROWS = int(os.environ.get("LAKESCORE_BUDGET_ROWS", "1000"))  # a multiple of 1,000
# What makes a row bad, and its code.
BAD = {
    "null_text": "NULL",
    "blank_text": "encode(' \t', 'UTF-8')",
    "invalid_unicode": "X'61C328'",
    "too_long": "encode(concat('Maria ', id, repeat(' and on', 40)), 'UTF-8')",
}
CODES = " ".join(f"WHEN bad = {nth} THEN '{code}'" for nth, code in enumerate(BAD))


def make_source(spark: "SparkSession", path: Path, bad: str) -> None:
    """Make a table of which a row is bad in the nth way where `bad` is n."""
    cases = " ".join(f"WHEN bad = {nth} THEN {text}" for nth, text in enumerate(BAD.values()))
    # Few texts, however many rows: equal ones of a batch are scored once.
    good = "encode(concat('Maria ', id % 1000, ' lives in Lisbon'), 'UTF-8')"
    text = f"CASE {cases} ELSE {good} END"
    rows = spark.range(0, ROWS, 1, 2).selectExpr("id", f"{bad} AS bad")
    rows.selectExpr("id", f"CASE {CODES} END AS expected", f"{text} AS text").write.format(
        "delta"
    ).save(str(path))


def settings(folder: Path, model: Path) -> dict[str, Any]:
    return {
        "source": {"table": f"{folder}/source", "key": "id"},
        "target": {"table": f"{folder}/target"},
        "tasks": {"entities": {"model": str(model)}},
        "encoding": {"long_text": "reject", "max_length": 64},
        "limits": {"max_error_fraction": 0.05},
        "mlflow": {"tracking_uri": "sqlite:///mlflow.db", "experiment": "budget"},
    }


def score(folder: Path, model: Path) -> "subprocess.CompletedProcess[str]":
    relative = {"source": {"table": "./source", "key": "id"}, "target": {"table": "./target"}}
    (folder / "job.yml").write_text(yaml.safe_dump(settings(folder, model) | relative))
    return subprocess.run(
        [sys.executable, "-m", "lakescore.cli", "score", "job.yml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")} | brief_spark(folder),
        capture_output=True,
        text=True,
    )


def read(spark: "SparkSession", folder: Path, table: str) -> Any:
    return spark.read.format("delta").load(str(folder / table))


def bad_of_1000(rows: int) -> tuple[str, dict[str, int]]:
    """Let so many of a thousand rows be bad, in each way in turn; return how many by their code."""
    by_code = {code: len(range(nth, rows, 4)) * (ROWS // 1000) for nth, code in enumerate(BAD)}
    return f"IF(id % 1000 < {rows}, id % 1000 % 4, NULL)", by_code


def test_each_bad_row_has_its_code_and_each_good_one_is_scored_within_the_budget(
    spark: "SparkSession", tmp_path: Path, entity_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, failed = bad_of_1000(49)
    make_source(spark, tmp_path / "source", bad)
    monkeypatch.chdir(tmp_path)  # MLflow keeps its artifacts beside where it is started
    job = JobConfig.parse(settings(tmp_path, entity_model))
    summary = score_table(spark, job, now=NOW)
    scored = ROWS * 951 // 1000
    assert (summary.rows_in, summary.rows_scored) == (ROWS, scored)
    assert summary.rows_failed == failed

    target = read(spark, tmp_path, "target")
    counted = target.groupBy("error.code").agg({"id": "count", "*": "count"}).collect()
    assert {row[0]: row[1] for row in counted} == {None: scored} | failed
    assert target.select("id").distinct().count() == target.count() == ROWS
    is_as_expected = (
        "error.code <=> expected AND (error IS NULL) = (entities IS NOT NULL)"
        " AND (error IS NULL) = (n_tokens BETWEEN 1 AND 62 AND expected IS NULL)"
    )
    assert target.where(f"NOT ({is_as_expected})").limit(3).collect() == []
    found = target.selectExpr("CAST(text AS string) AS text", "explode(entities) AS e")
    assert found.where("e.word = substring(text, e.start + 1, e.end - e.start)").count() > ROWS / 2
    assert found.where("e.word <> substring(text, e.start + 1, e.end - e.start)").count() == 0
    [bill] = read(spark, tmp_path, "target_runs").collect()
    assert (bill.status, bill.rows_in, bill.rows_failed) == ("finished", ROWS, failed)


def test_a_run_over_its_budget_of_errors_commits_nothing_and_exits_with_1(
    spark: "SparkSession", tmp_path: Path, entity_model: Path
) -> None:
    bad, failed = bad_of_1000(51)
    make_source(spark, tmp_path / "source", bad)
    done = score(tmp_path, entity_model)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    [said] = [line for line in done.stderr.splitlines() if line.startswith("BudgetError: ")]
    assert f"./target: {sum(failed.values()):,} of {ROWS:,} rows failed (" in said
    counts, over, _ = said.partition("failed (")[2].partition(
        "), over limits.max_error_fraction 0.05;"
    )
    assert over
    assert sorted(counts.split(", ")) == sorted(f"{code} {n:,}" for code, n in failed.items())
    assert read(spark, tmp_path, "target").count() == 0
    [bill] = read(spark, tmp_path, "target_runs").collect()
    assert (bill.status, bill.rows_in, bill.error) == ("failed", 0, said[len("BudgetError: ") :])
