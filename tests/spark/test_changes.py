"""Sources that change and tables that do not fit: what a job does and what it says."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    JobConfig,
    TableError,
    rescore_table,
)
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import ONE_SNAPSHOT, a_snapshot_mends, add, changed, content, feed, follow

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
