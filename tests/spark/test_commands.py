"""Budgets, bills, rescore, retry and purge: what each leaves behind."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    JobConfig,
    rescore_table,
    retry_table,
)
from lakescore.purge import purge_target
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import add, changed, content, follow
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.mark.usefixtures("begun")
def test_a_run_stops_over_its_budget_of_errors_and_not_at_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(100, None), *((nth, "good") for nth in range(101, 119))])
    add(spark, source, [(200, None)])
    limits = {"max_error_fraction": 0.05}  # of 20 rows that the run has before it, one
    slow = changed(settings, source={"max_files": 1}, limits=limits)
    with pytest.raises(BudgetError, match=r"2 of 20 rows failed \(null_text 2\), over .* 0.05;"):
        run(slow)
    # The first micro-batches stay, though all rows of one may be bad; the last is not written.
    assert content(spark, target).keys() == {*dict(ROWS), *range(100, 119)}


@pytest.mark.usefixtures("begun")
def test_every_run_leaves_a_bill_and_tells_its_progress_whatever_others_note_in_the_history(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    [first] = spark.read.format("delta").load(f"{target}_runs").collect()
    none = spark.read.format("delta").load(target).limit(0)
    for note in ("{not json", "[1]", "{}", "words"):
        none.write.format("delta").mode("append").option("userMetadata", note).save(target)
    idle = run(settings)
    add(spark, source, [(nth, "good") for nth in range(100, 120)])
    seen: list[tuple[int, int | None]] = []
    second = run(settings, seen)
    assert seen[-1] == (20, 20)
    assert {total for _, total in seen} <= {None, 20}
    add(spark, source, [(200, None), (201, "good")])
    with pytest.raises(BudgetError):
        run(changed(settings, limits={"max_error_fraction": 0.1}))
    bills = {row.run_id: row for row in spark.read.format("delta").load(f"{target}_runs").collect()}
    [failed] = bills.keys() - {first.run_id, idle.mlflow_run_id, second.mlflow_run_id}
    found = {
        run_id: (each.command, each.status, each.rows_in, each.rows_scored, each.rows_failed)
        for run_id, each in bills.items()
    }
    assert found == {
        first.run_id: ("score", "finished", 60, 54, {"null_text": 6}),
        idle.mlflow_run_id: ("score", "finished", 0, 0, {}),
        second.mlflow_run_id: ("score", "finished", 20, 20, {}),
        failed: ("score", "failed", 0, 0, {}),
    }
    bill = bills[second.mlflow_run_id]
    rows = spark.read.format("delta").load(target).where(f"run_id = '{bill.run_id}'")
    [row] = rows.selectExpr("sum(n_tokens) AS tokens", "first(model) AS models").collect()
    assert (bill.tokens, bill.models) == (row.tokens, row.models)
    assert bill.fingerprints.keys() == {"entities", "sentiment"}
    versions = [(each.source_version_first, each.source_version_last) for each in (first, bill)]
    assert versions == [(0, 0), (1, 1)]
    error = f"{target}: 1 of 2 rows failed (null_text 1), over limits.max"
    assert bills[failed].error.startswith(error)


@pytest.mark.usefixtures("begun")
def test_stale_rows_are_scored_again_by_the_new_model_and_a_stop_loses_nothing(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    table = settings["target"]["table"]
    target = spark.read.format("delta").load(table)
    [old] = {row[0] for row in target.select("model.entities").collect()}
    tasks = {**settings["tasks"], "entities": {"model": str(tiny_model(tmp_path / "new", seed=5))}}
    new = changed(settings, source={"max_bytes": 2000}) | {"tasks": tasks}

    def stop_after_the_first_step(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    config = JobConfig.parse(new)
    with pytest.raises(KeyboardInterrupt):
        rescore_table(spark, config, now=NOW, progress=stop_after_the_first_step)
    by_model = {row[0]: row[1] for row in target.groupBy("model.entities").count().collect()}
    assert len(by_model) == 2 and sum(by_model.values()) == 60
    again = rescore_table(spark, config, now=NOW)
    assert again.rows_in == by_model[old]
    assert target.where(f"model.entities = '{old}'").count() == 0
    assert content(spark, table) == dict(ROWS)


@pytest.mark.usefixtures("begun")
def test_rows_whose_error_may_pass_are_scored_again_without_a_budget_of_errors(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = settings["target"]["table"]
    lost = (
        "error = named_struct('code', 'worker_lost', 'detail', 'x'), entities = NULL, "
        "sentiment = NULL, n_tokens = 0"
    )
    # Of another text than was scored: that one is the source's.
    spark.sql(f"UPDATE delta.`{target}` SET {lost}, text = 'x' WHERE id IN (1, 2, 3)")
    null = "text = NULL, text_hash = xxhash64(CAST(NULL AS string))"
    spark.sql(f"UPDATE delta.`{target}` SET {lost}, {null} WHERE id IN (4, 5, 6)")
    config = JobConfig.parse(changed(settings, limits={"max_error_fraction": 0.4}))
    again = retry_table(spark, config, now=NOW)
    assert (again.rows_in, again.rows_scored, again.rows_failed) == (6, 3, {"null_text": 3})
    errors = spark.read.format("delta").load(target).where("error IS NOT NULL")
    assert {(row.id, row.error.code) for row in errors.collect()} == {
        (nth, "null_text") for nth in (4, 5, 6, *range(0, 60, 10))
    }


@pytest.mark.usefixtures("followed")
def test_purged_texts_are_in_no_file(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = follow(settings, "cdf")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 7")
    run(settings)

    def texts() -> set[str | None]:
        files = [str(file) for file in Path(target).glob("*.parquet")]
        return {row.text for row in spark.read.parquet(*files).select("text").collect()}

    purge_target(spark, JobConfig.parse(settings), retain_hours=168)
    assert "Maria 7 lives in Lisbon" in texts()  # until a second one, after those hours
    purged = purge_target(spark, JobConfig.parse(settings), retain_hours=0)
    assert (purged.target, purged.retain_hours) == (target, 0)
    assert texts() == set(content(spark, target).values())
    assert "Maria 7" not in "".join(
        file.read_text() for file in (Path(target) / "_delta_log").glob("*.json")
    )
