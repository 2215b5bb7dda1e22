"""Sources that change, tables that do not fit, budgets: what a job does and what it says."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    ConfigError,
    JobConfig,
    TableError,
    rescore_table,
    retry_table,
)
from lakescore.purge import purge_target
from tests.jobs import NOW, Run
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]
ONE_SNAPSHOT = "run once with --set source.changes=snapshot"


def changed(settings: dict[str, Any], **groups: Any) -> dict[str, Any]:
    """The settings with those of some groups changed."""
    return settings | {name: settings.get(name, {}) | values for name, values in groups.items()}


def follow(settings: dict[str, Any], changes: str) -> dict[str, Any]:
    return changed(settings, source={"changes": changes})


def add(spark: "SparkSession", table: str, rows: list[tuple[Any, ...]]) -> None:
    frame = spark.createDataFrame(rows, "id long, text string")
    frame.write.format("delta").mode("append").save(table)


def feed(spark: "SparkSession", table: str) -> None:
    spark.sql(f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES (delta.enableChangeDataFeed = true)")


def content(spark: "SparkSession", table: str) -> dict[int, str | None]:
    """The target's keys and texts; a key that is there twice is an error."""
    rows = spark.read.format("delta").load(table).select("id", "text").collect()
    found = {row.id: row.text for row in rows}
    assert len(found) == len(rows)
    return found


def a_snapshot_mends(
    spark: "SparkSession", settings: dict[str, Any], run: Run, *, rows_in: int
) -> None:
    """Run a snapshot, which scores `rows_in` rows, and go on as before with a new row."""
    source, target = settings["source"]["table"], settings["target"]["table"]
    assert run(follow(settings, "snapshot")).rows_in == rows_in
    add(spark, source, [(999, "new")])
    assert run(settings).rows_in == 1
    assert content(spark, target) == content(spark, source)


def test_a_target_follows_the_change_feed_of_its_source(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    settings = follow(settings, "cdf")
    assert run(settings).rows_in == 60
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 5")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 7")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna in Porto' WHERE id = 7")
    spark.sql(f"UPDATE delta.`{source}` SET id = 100 WHERE id = 8")
    add(spark, source, [(200, "new"), (201, "gone again")])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 201")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_deleted) == (3, 6)  # 201 never was in the target
    assert content(spark, target) == content(spark, source)
    assert run(settings).rows_in == 0
    [new] = spark.read.format("delta").load(target).where("id = 7").collect()
    [clean] = spark.read.format("delta").load(target).where("id = 200").collect()
    assert new.run_id == clean.run_id == summary.mlflow_run_id


def test_a_snapshot_scores_what_the_target_lacks_and_nothing_else(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    wider = spark.read.format("delta").load(source).selectExpr("*", "map('a', id) AS labels")
    wider.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(source)
    settings = follow(settings, "snapshot")
    assert run(settings).rows_in == 60
    assert run(settings).rows_in == 0
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 5")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id IN (7, 8)")
    spark.sql(f"UPDATE delta.`{source}` SET labels = map('b', 1L) WHERE id = 9")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (100, 'new', map('c', 2L))")
    summary = run(changed(settings, source={"max_bytes": 3000}))  # in steps
    assert (summary.rows_in, summary.rows_refreshed, summary.rows_deleted) == (3, 1, 5)
    assert content(spark, target) == content(spark, source)
    rows = {row.id: row for row in spark.read.format("delta").load(target).collect()}
    assert rows[9].labels == {"b": 1}
    assert rows[9].run_id != summary.mlflow_run_id == rows[8].run_id


@pytest.mark.usefixtures("begun")
def test_an_overwrite_replaces_the_target_in_one_commit(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 30")
    settings = changed(follow(settings, "snapshot"), target={"write": "overwrite"})
    summary = run(settings)
    assert (summary.rows_in, summary.rows_deleted) == (30, 30)
    rows = spark.read.format("delta").load(target).collect()
    assert {row.run_id for row in rows} == {summary.mlflow_run_id}
    assert content(spark, target) == content(spark, source)
    assert run(settings).rows_in == 0  # neither the source nor a model is new


@pytest.mark.usefixtures("begun")
def test_rows_that_changed_lead_from_append_by_a_snapshot_to_the_change_feed(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 3")
    with pytest.raises(TableError, match=r"source.changes is append; set it to cdf if .* was on"):
        run(settings)
    with pytest.raises(TableError, match=r"has no change data feed.*ALTER TABLE delta.`.*` SET "):
        run(follow(settings, "cdf"))
    feed(spark, source)
    with pytest.raises(TableError, match=f"change data feed was off for a while.*{ONE_SNAPSHOT}"):
        run(follow(settings, "cdf"))
    summary = run(follow(settings, "snapshot"))
    assert (summary.rows_in, summary.rows_deleted) == (0, 1)
    assert run(follow(settings, "cdf")).rows_in == 0  # nothing came after the snapshot
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 4")
    add(spark, source, [(100, "new")])
    summary = run(follow(settings, "cdf"))
    assert (summary.rows_in, summary.rows_deleted) == (1, 1)
    assert content(spark, target) == content(spark, source)


@pytest.mark.usefixtures("begun")
def test_a_lost_checkpoint_is_an_error_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = settings["target"]["table"]
    before = content(spark, target)
    shutil.rmtree(f"{target}_checkpoint")
    with pytest.raises(TableError, match=f"is not the checkpoint that .* or {ONE_SNAPSHOT}"):
        run(settings)
    assert content(spark, target) == before
    a_snapshot_mends(spark, settings, run, rows_in=0)


def test_double_and_null_keys_are_refused_with_their_number(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    add(spark, source, [(1, "again"), (2, "again"), (2, "and again")])
    for changes in ("append", "cdf", "snapshot"):
        with pytest.raises(TableError, match=r"2 keys \(id\) are there more than once"):
            run(follow(settings, changes))
    assert spark.read.format("delta").load(target).count() == 0
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IN (1, 2)")
    assert run(follow(settings, "snapshot")).rows_in == 58
    add(spark, source, [(5, "again")])
    with pytest.raises(TableError, match=r"1 of 1 new rows have a key \(id\) that .* already"):
        run(follow(settings, "cdf"))
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text = 'again'")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (NULL, 'nobody')")
    with pytest.raises(TableError, match=r"source.key \(id\) is null in 1 rows"):
        run(follow(settings, "snapshot"))
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IS NULL")
    assert run(follow(settings, "snapshot")).rows_in == 0
    add(spark, source, [(300, "new")])
    assert run(follow(settings, "cdf")).rows_in == 1
    assert content(spark, target) == content(spark, source)


@pytest.mark.usefixtures("followed")
def test_a_vacuumed_change_feed_is_an_error_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = follow(settings, "cdf")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 7")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna in Porto' WHERE id = 7")
    check = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(check, "false")
    spark.sql(f"VACUUM delta.`{source}` RETAIN 0 HOURS")
    spark.conf.unset(check)
    before = content(spark, target)
    with pytest.raises(TableError, match=f"files that the last run had not read .*{ONE_SNAPSHOT}"):
        run(settings)
    assert content(spark, target) == before
    a_snapshot_mends(spark, settings, run, rows_in=1)


@pytest.mark.usefixtures("begun")
def test_another_key_is_refused(spark: "SparkSession", settings: dict[str, Any], run: Run) -> None:
    for changes in ("append", "snapshot"):
        other = changed(settings, source={"key": ["id", "text"], "changes": changes})
        with pytest.raises(TableError, match=r"by source.key \(id\), which is now \(id, text\)"):
            run(other)


@pytest.mark.usefixtures("begun")
def test_a_new_column_stops_the_job_unless_the_target_may_evolve(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (place string COMMENT 'where')")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (100, 'new', 'Porto')")
    with pytest.raises(TableError, match=r"'place' is missing, the job's is string; set target.ev"):
        run(settings)
    assert len(content(spark, target)) == 60
    evolving = changed(settings, target={"evolve": True})
    assert run(evolving).rows_in == 1
    rows = {row.id: row.place for row in spark.read.format("delta").load(target).collect()}
    assert (rows[100], rows[1]) == ("Porto", None)
    fewer = changed(settings, source={"columns": ["text"]})
    with pytest.raises(TableError, match=r"the job's is missing; set target.evolve: true to leave"):
        run(fewer)
    without = {"tasks": {"entities": settings["tasks"]["entities"]}}
    add_later = settings | without | {"target": {"table": f"{target}_later"}}
    run(add_later)
    with pytest.raises(TableError, match="its column 'sentiment' is missing"):
        run(add_later | {"tasks": settings["tasks"]})
    evolving = changed(add_later | {"tasks": settings["tasks"]}, target={"evolve": True})
    assert run(evolving).rows_in == 0
    config = JobConfig.parse(evolving)
    again = rescore_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert again.rows_in == 61
    rows = spark.read.format("delta").load(f"{target}_later").where("sentiment IS NOT NULL")
    assert rows.count() == 55


def test_a_run_stops_over_its_budget_of_errors_and_not_at_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    over = changed(settings, limits={"max_error_fraction": 0.099})
    with pytest.raises(BudgetError) as raised:
        run(over)
    assert "6 of 60 rows failed (null_text 6), over limits.max_error_fraction 0.099" in str(
        raised.value
    )
    assert spark.read.format("delta").load(target).count() == 0
    assert run(changed(settings, limits={"max_error_fraction": 0.1})).rows_in == 60
    add(spark, source, [(100, None), *((nth, "good") for nth in range(101, 120))])
    assert run(changed(settings, limits={"max_error_fraction": 0.05})).rows_in == 20
    # Bad rows of the first micro-batch do not stop a run of which all others are good.
    add(spark, source, [(200, None)])
    add(spark, source, [(nth, "good") for nth in range(201, 220)])
    slow = changed(settings, source={"max_files": 1}, limits={"max_error_fraction": 0.05})
    assert run(slow).rows_in == 20
    assert len(content(spark, target)) == 100
    # Bad rows of the second one do, and what the first one brought stays.
    add(spark, source, [(300, "good")])
    add(spark, source, [(301, None)])
    with pytest.raises(BudgetError, match=r"1 of 2 rows failed \(null_text 1\)"):
        run(slow)
    assert content(spark, target).keys() & {300, 301} == {300}


def test_every_run_leaves_a_bill(spark: "SparkSession", settings: dict[str, Any], run: Run) -> None:
    first, idle = run(settings), run(settings)
    add(spark, settings["source"]["table"], [(100, None), (101, "good")])
    with pytest.raises(BudgetError):
        run(changed(settings, limits={"max_error_fraction": 0.1}))
    bills = spark.read.format("delta").load(f"{first.target}_runs").collect()
    found = {
        each.run_id: (each.command, each.status, each.rows_in, each.rows_scored, each.rows_failed)
        for each in bills
    }
    [failed] = found.keys() - {first.mlflow_run_id, idle.mlflow_run_id}
    assert found == {
        first.mlflow_run_id: ("score", "finished", 60, 54, {"null_text": 6}),
        idle.mlflow_run_id: ("score", "finished", 0, 0, {}),
        failed: ("score", "failed", 0, 0, {}),
    }
    [bill] = [each for each in bills if each.run_id == first.mlflow_run_id]
    target = spark.read.format("delta").load(first.target)
    [row] = (
        target.where("run_id = '" + first.mlflow_run_id + "'")
        .selectExpr("sum(n_tokens) AS tokens", "first(model) AS models")
        .collect()
    )
    assert (bill.tokens, bill.models) == (row.tokens, row.models)
    assert (bill.source_version_first, bill.source_version_last) == (0, 0)
    assert bill.fingerprints.keys() == {"entities", "sentiment"}
    [error] = [each.error for each in bills if each.run_id == failed]
    assert error.startswith(f"{first.target}: 1 of 2 rows failed (null_text 1), over limits.max")


def test_stale_rows_are_scored_again_by_the_new_model_and_a_stop_loses_nothing(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    first = run(settings)
    target = spark.read.format("delta").load(first.target)
    [old] = {row[0] for row in target.select("model.entities").collect()}
    tasks = {**settings["tasks"], "entities": {"model": str(tiny_model(tmp_path / "new", seed=5))}}
    new = changed(settings, source={"max_bytes": 1000}) | {"tasks": tasks}
    stops = iter([False, False, True])

    def stop_in_the_third_step(done: int, total: int | None) -> None:
        if next(stops, False):
            raise KeyboardInterrupt

    config = JobConfig.parse(new)
    with pytest.raises(KeyboardInterrupt):
        rescore_table(spark, config, now=NOW, progress=stop_in_the_third_step)
    by_model = {row[0]: row[1] for row in target.groupBy("model.entities").count().collect()}
    assert len(by_model) == 2 and sum(by_model.values()) == 60
    again = rescore_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert again.rows_in == by_model[old]
    assert target.where(f"model.entities = '{old}'").count() == 0
    assert len(content(spark, first.target)) == 60
    done = rescore_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert done.rows_in == 0


def test_rows_whose_error_may_pass_are_scored_again(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    settings = changed(settings, source={"columns": []})  # the text comes from the source
    target = run(settings).target
    broken = "named_struct('code', 'worker_lost', 'detail', 'x')"
    spark.sql(
        f"UPDATE delta.`{target}` SET error = {broken}, entities = NULL, sentiment = NULL, "
        "n_tokens = 0 WHERE id IN (1, 2, 3)"
    )
    config = JobConfig.parse(settings)
    again = retry_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert (again.rows_in, again.rows_scored) == (3, 3)
    errors = spark.read.format("delta").load(target).where("error IS NOT NULL")
    assert {row.error.code for row in errors.collect()} == {"null_text"}


def test_purged_texts_are_in_no_file_and_a_stage_left_behind_is_not_lost(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = settings["source"]["table"]
    feed(spark, source)
    settings = follow(settings, "cdf")
    target = run(settings).target
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 7")
    run(settings)

    def texts() -> set[str | None]:
        files = [str(file) for file in Path(target).glob("*.parquet")]
        return {row.text for row in spark.read.parquet(*files).select("text").collect()}

    assert "Maria 7 lives in Lisbon" in texts()
    config = JobConfig.parse(settings)
    [stream] = Path(f"{target}_checkpoint").glob("*/stream-*")
    stage = stream.with_name("stage-stream")
    spark.range(1).write.format("delta").save(str(stage))
    with pytest.raises(TableError, match="holds rows that a run has scored and not committed"):
        purge_target(spark, config, retain_hours=0)
    shutil.rmtree(stage)
    purged = purge_target(spark, config, retain_hours=0)
    assert (purged.target, purged.retain_hours) == (target, 0)
    assert texts() == set(content(spark, target).values())
    assert "Maria 7" not in "".join(
        file.read_text() for file in (Path(target) / "_delta_log").glob("*.json")
    )


def test_a_target_says_what_its_columns_are_and_keeps_texts_out_of_its_log(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = run(settings).target
    described = spark.sql(f"DESCRIBE TABLE delta.`{target}`").collect()
    comments = {row.col_name: row.comment for row in described}
    assert comments["entities"] == "Named entities; text[start:end] is the word"
    [detail] = spark.sql(f"DESCRIBE DETAIL delta.`{target}`").collect()
    assert detail.clusteringColumns == ["id"]
    assert detail.properties["delta.constraints.lakescore_entities"] == (
        "error IS NULL OR entities IS NULL"
    )
    [writer] = [json.loads(v) for k, v in detail.properties.items() if k.startswith("lakescore.")]
    assert (writer["source"], writer["key"]) == (settings["source"]["table"], ["id"])
    log = "".join(file.read_text() for file in (Path(target) / "_delta_log").glob("*.json"))
    assert '\\"minValues\\":{\\"id\\":' in log
    assert "Maria" not in log


def test_what_does_not_go_together_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'target.write' is merge, and a source of source.chang"):
        JobConfig.parse(changed(settings, target={"write": "merge"}))


@pytest.mark.usefixtures("begun")
def test_progress_knows_how_many_rows_an_increment_has(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    add(spark, settings["source"]["table"], [(nth, "good") for nth in range(100, 120)])
    seen: list[tuple[int, int | None]] = []
    run(settings, seen)
    assert seen[-1] == (20, 20)
    assert {total for _, total in seen} <= {None, 20}
