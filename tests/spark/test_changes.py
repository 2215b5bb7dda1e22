"""Sources that change, tables that do not fit, budgets: what a job does and what it says."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    JobConfig,
    TableError,
    rescore_table,
    retry_table,
)
from lakescore.purge import purge_target
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import ONE_SNAPSHOT, a_snapshot_mends, add, changed, content, feed, follow
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.mark.usefixtures("followed")
def test_a_target_follows_the_change_feed_whatever_came_and_went_between_two_runs(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(1, "again"), (2, "again")])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text = 'again' AND id = 1")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 2")
    restored = spark.sql(f"DESCRIBE HISTORY delta.`{source}`").head()
    assert restored is not None
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (2, 'new'), (300, 'new'), (301, 'x')")
    spark.sql(f"RESTORE delta.`{source}` TO VERSION AS OF {restored.version}")
    spark.sql(
        f"INSERT INTO delta.`{source}` VALUES (NULL, 'a'), (NULL, 'b'), (200, 'new'), (201, 'gone')"
    )
    spark.sql(f"UPDATE delta.`{source}` SET id = 500 WHERE text = 'a'")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IS NULL OR id IN (3, 4, 5, 201)")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 7")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna in Porto' WHERE id = 7")
    spark.sql(f"UPDATE delta.`{source}` SET id = 100 WHERE id = 8")
    summary = run(follow(settings, "cdf"))
    assert content(spark, target) == content(spark, source)
    rows = spark.read.format("delta").load(target)
    scored = {row.id for row in rows.where(f"run_id = '{summary.mlflow_run_id}'").collect()}
    assert scored == {7, 100, 200, 500}  # and not 1, which is as it was
    # 2, 3, 4, 5 and 8: of the others that are gone the target never had any.
    assert (summary.rows_in, summary.rows_deleted) == (4, 5)


def test_a_snapshot_scores_what_the_target_lacks_and_nothing_else(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    def value(time: str) -> str:
        inner = f"map(named_struct('b', X'01'), TIMESTAMP'2024-01-01 00:00:00.{time}')"
        return f"named_struct('none', CAST(NULL AS map<int, int>), 'many', array({inner}, NULL))"

    source, target = settings["source"]["table"], settings["target"]["table"]
    wider = spark.read.format("delta").load(source).selectExpr("*", f"{value('000001')} AS v")
    wider.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(source)
    settings = follow(settings, "snapshot")
    assert run(settings).rows_in == 60
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 5")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id IN (7, 8)")
    others = f"CASE id WHEN 9 THEN {value('000002')} END"
    spark.sql(f"UPDATE delta.`{source}` SET v = {others} WHERE id IN (9, 11)")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (100, 'new', {value('000003')})")
    summary = run(changed(settings, source={"max_bytes": 3000}))  # in steps
    assert (summary.rows_in, summary.rows_refreshed, summary.rows_deleted) == (3, 2, 5)
    there, here = (
        spark.read.format("delta").load(table).selectExpr("id", "text", "CAST(v AS string)")
        for table in (target, source)
    )
    assert sorted(there.collect()) == sorted(here.collect())
    runs = spark.read.format("delta").load(target).select("id", "run_id")
    rows = {row.id: row.run_id for row in runs.collect()}
    assert rows[9] != summary.mlflow_run_id == rows[8]


@pytest.mark.usefixtures("begun")
def test_an_overwrite_replaces_the_target_and_follows_a_source_that_was_made_anew(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 30")
    settings = changed(follow(settings, "snapshot"), target={"write": "overwrite", "evolve": True})
    summary = run(settings)
    assert (summary.rows_in, summary.rows_deleted) == (30, 30)
    rows = spark.read.format("delta").load(target).collect()
    assert {row.run_id for row in rows} == {summary.mlflow_run_id}
    assert content(spark, target) == dict(ROWS[30:])
    assert run(settings).rows_in == 0  # neither the source nor a model is new
    shutil.rmtree(source)
    wider = spark.createDataFrame(
        [(*row, "Porto") for row in ROWS[30:]], "id long, text string, place string"
    )
    wider.write.format("delta").save(source)
    summary = run(settings)
    assert (summary.rows_in, summary.rows_deleted) == (30, 0)
    rows = spark.read.format("delta").load(target).collect()
    assert {(row.place, row.run_id) for row in rows} == {("Porto", summary.mlflow_run_id)}


@pytest.mark.usefixtures("begun")
def test_rows_that_changed_lead_from_append_by_a_snapshot_to_the_change_feed(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text LIKE 'Maria 3 %'")
    append = r"source.changes is append; set it to cdf if .* was on"
    with pytest.raises(TableError, match=append) as raised:
        run(settings)
    assert "Maria" not in str(raised.value)
    with pytest.raises(TableError, match=r"has no change data feed.*ALTER TABLE delta.`.*` SET "):
        run(follow(settings, "cdf"))
    # Delta keeps the spelling.
    on = "delta.enableChangeDataFeed = 'True'"
    spark.sql(f"ALTER TABLE delta.`{source}` SET TBLPROPERTIES ({on})")
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


@pytest.mark.usefixtures("compared")
def test_double_and_null_keys_are_refused_with_their_number(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    add(spark, source, [(1, "again"), (2, "again"), (2, "and again")])
    anew = changed(settings, target={"table": f"{target}_2"})
    for each in (follow(settings, "snapshot"), anew, follow(anew, "cdf")):
        with pytest.raises(TableError, match=r"2 keys \(id\) are there more than once"):
            run(each)
    assert spark.read.format("delta").load(f"{target}_2").count() == 0
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 2 AND text LIKE '%again'")
    with pytest.raises(TableError, match=r"1 of 1 new rows have a key \(id\) that .* already"):
        run(follow(settings, "cdf"))
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text = 'again'")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (NULL, 'nobody')")
    with pytest.raises(TableError, match=r"source.key \(id\) is null in 1 rows"):
        run(follow(settings, "snapshot"))
    assert content(spark, target) == dict(ROWS)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IS NULL")
    a_snapshot_mends(spark, follow(settings, "cdf"), run, rows_in=0)


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
def test_another_key_and_another_text_are_refused(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    for changes in ("append", "snapshot"):
        other = changed(settings, source={"key": ["id", "text"], "changes": changes})
        with pytest.raises(TableError, match=r"by source.key \(id\), which is now \(id, text\)"):
            run(other)
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (body string)")
    with pytest.raises(TableError, match=r"by source.text \(text\), which is now \(body\); take "):
        run(changed(settings, source={"text": "body", "columns": ["text"]}))
    assert content(spark, target) == dict(ROWS)


@pytest.mark.usefixtures("begun")
def test_a_new_column_stops_the_job_unless_the_target_may_evolve(
    spark: "SparkSession", settings: dict[str, Any], run: Run, caplog: pytest.LogCaptureFixture
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
    config = JobConfig.parse(evolving)
    again = rescore_table(spark, config, now=NOW)
    assert again.rows_in == 61
    rows = spark.read.format("delta").load(f"{target}_later").where("sentiment IS NOT NULL")
    assert rows.count() == 55
    assert "a task that the job has not" not in caplog.text
    run(evolving | without)
    assert "has scores of a task that the job has not (sentiment)" in caplog.text


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


@pytest.mark.usefixtures("begun")
def test_a_target_says_what_its_columns_are_and_keeps_texts_out_of_its_log(
    spark: "SparkSession", settings: dict[str, Any]
) -> None:
    target = settings["target"]["table"]
    described = spark.sql(f"DESCRIBE TABLE delta.`{target}`").collect()
    comments = {row.col_name: row.comment for row in described}
    assert comments["entities"] == "Named entities; text[start:end] is the word"
    [detail] = spark.sql(f"DESCRIBE DETAIL delta.`{target}`").collect()
    assert detail.clusteringColumns == ["id"]
    assert detail.properties["delta.isolationLevel"] == "Serializable"  # Databricks' is another
    assert detail.properties["delta.constraints.lakescore_entities"] == (
        "error IS NULL OR entities IS NULL"
    )
    [writer] = [json.loads(v) for k, v in detail.properties.items() if k.startswith("lakescore.")]
    assert (writer["source"].endswith("/source"), writer["key"]) == (True, ["id"])
    log = "".join(file.read_text() for file in (Path(target) / "_delta_log").glob("*.json"))
    assert '\\"minValues\\":{\\"id\\":' in log
    assert "Maria" not in log
