"""Tables that were restored, made anew, shared or changed at the wrong moment: no row is lost."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    JobConfig,
    TableError,
    microbatch,
    retry_table,
)
from lakescore.purge import purge_target
from tests.jobs import NOW, ROWS, Run
from tests.spark.test_changes import (
    ONE_SNAPSHOT,
    a_snapshot_mends,
    add,
    changed,
    content,
    feed,
    follow,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


def make_anew(spark: "SparkSession", table: str, rows: list[tuple[Any, ...]]) -> None:
    shutil.rmtree(table)
    add(spark, table, rows)


def at_step(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, action: Callable[[], object]
) -> None:
    """Let something happen once, when a run reaches a step."""
    left = [action]

    def reached(at: str) -> None:
        if at == step and left:
            left.pop()()

    monkeypatch.setattr(module, "reached", reached)


@pytest.mark.usefixtures("followed")
def test_a_double_that_came_and_went_between_two_runs_costs_no_row(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = follow(settings, "cdf")
    add(spark, source, [(1, "again"), (2, "again")])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text = 'again' AND id = 1")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 2")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (2, 'new'), (300, 'new'), (301, 'x')")
    spark.sql(f"RESTORE delta.`{source}` TO VERSION AS OF 4")
    run(settings)
    assert content(spark, target) == content(spark, source)
    assert 1 in content(spark, target) and 2 not in content(spark, target)


def test_a_table_overwritten_by_itself_is_followed_in_micro_batches_of_one_file(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    settings = changed(settings, source={"changes": "cdf", "max_files": 1})
    run(settings)
    texts = "CASE WHEN id % 7 = 0 THEN concat('new ', id) ELSE text END"
    spark.sql(
        f"INSERT OVERWRITE delta.`{source}` SELECT /*+ REPARTITION(2) */ id, {texts} "
        f"FROM delta.`{source}` WHERE id > 4"
    )
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 10")
    summary = run(settings)
    assert content(spark, target) == content(spark, source)
    assert summary.rows_in < 15  # what is as it was is not scored again
    add(spark, source, [(20, "double"), (400, "new")])
    with pytest.raises(TableError, match=r"1 keys \(id\) are there more than once"):
        run(settings)


@pytest.mark.usefixtures("followed")
def test_a_null_key_that_came_and_went_between_two_runs_is_no_error(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = follow(settings, "cdf")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (NULL, 'a'), (NULL, 'b')")
    spark.sql(f"UPDATE delta.`{source}` SET id = 500 WHERE text = 'a'")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IS NULL")
    assert run(settings).rows_in == 1
    assert content(spark, target) == content(spark, source)


def test_rows_of_which_other_columns_changed_keep_their_scores(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    wider = spark.read.format("delta").load(source).selectExpr("*", "id AS place")
    wider.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(source)
    feed(spark, source)
    settings = follow(settings, "cdf")
    first = run(settings)
    spark.sql(f"UPDATE delta.`{source}` SET place = -1")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 3")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_refreshed) == (1, 59)
    rows = {row.id: row for row in spark.read.format("delta").load(target).collect()}
    assert {row.place for row in rows.values()} == {-1}
    assert rows[3].run_id == summary.mlflow_run_id
    assert rows[4].run_id == first.mlflow_run_id


@pytest.mark.usefixtures("begun")
def test_a_restored_target_is_an_error_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    before = spark.sql(f"DESCRIBE HISTORY delta.`{target}`").first()
    assert before is not None
    add(spark, source, [(100, "new")])
    run(settings)
    spark.sql(f"RESTORE delta.`{target}` TO VERSION AS OF {before.version}")
    add(spark, source, [(101, "newer")])
    with pytest.raises(TableError, match=f"target: was restored .*{ONE_SNAPSHOT}"):
        run(settings)
    assert len(content(spark, target)) == 60
    a_snapshot_mends(spark, settings, run, rows_in=2)


@pytest.mark.usefixtures("begun")
def test_a_target_that_was_dropped_is_scored_from_the_start(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    shutil.rmtree(target)
    assert run(settings).rows_in == 60
    assert content(spark, target) == content(spark, source)


def test_targets_that_share_a_checkpoint_do_not_take_each_others_rows(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    source = settings["source"]["table"]
    both = [
        changed(settings, target={"table": f"{tmp_path}/{name}", "checkpoint": f"{tmp_path}/all"})
        for name in ("a", "b")
    ]
    for each in both:
        run(follow(each, "snapshot"))
    add(spark, source, [(100, "new")])
    for each in both:
        assert run(each).rows_in == 1
        assert content(spark, each["target"]["table"]) == content(spark, source)


def test_a_source_that_is_made_anew_again_and_again_is_followed(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    for nth in range(2):
        run(follow(settings, "snapshot"))
        add(spark, source, [(100 + nth, "new")])
        assert run(settings).rows_in == 1
        make_anew(spark, source, [*ROWS, (200 + nth, "other")])
        with pytest.raises(TableError, match="was made anew"):
            run(settings)
    run(follow(settings, "snapshot"))
    assert content(spark, target) == content(spark, source)


def test_an_overwrite_follows_a_source_that_was_made_anew_and_a_new_column(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = changed(follow(settings, "snapshot"), target={"write": "overwrite", "evolve": True})
    run(settings)
    assert run(settings).rows_in == 0
    make_anew(spark, source, [(1, "other")])
    assert run(settings).rows_in == 1
    assert content(spark, target) == {1: "other"}
    tasks = {"entities": settings["tasks"]["entities"]}
    later = changed(settings | {"tasks": tasks}, target={"table": f"{target}_later"})
    run(later)
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (place string)")
    spark.sql(f"UPDATE delta.`{source}` SET place = 'Porto'")
    run(later)
    [row] = spark.read.format("delta").load(f"{target}_later").collect()
    assert row.place == "Porto"


def test_scores_of_a_task_that_the_job_has_no_more_leave_with_their_text(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    settings = changed(settings, source={"changes": "cdf"}, target={"evolve": True})
    run(settings)
    spark.sql(f"ALTER TABLE delta.`{target}` ADD COLUMNS (checked string)")
    spark.sql(f"UPDATE delta.`{target}` SET checked = 'yes' WHERE id = 1")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 1")
    fewer = settings | {"tasks": {"entities": settings["tasks"]["entities"]}}
    assert run(fewer).rows_in == 1
    rows = {row.id: row for row in spark.read.format("delta").load(target).collect()}
    assert (rows[1].sentiment, rows[1].checked, rows[1].model.keys()) == (
        None, "yes", {"entities"},
    )  # fmt: skip
    assert rows[2].sentiment is not None


def test_columns_with_the_names_of_the_jobs_own_are_refused_or_left_alone(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = settings["source"]["table"]
    for name in ("_text", "_step", "_Change"):
        rows = spark.read.format("delta").load(source).selectExpr("id", "text", f"id AS {name}")
        shutil.rmtree(f"{source}_{name}", ignore_errors=True)
        rows.write.format("delta").save(f"{source}_{name}")
        named = changed(settings, source={"table": f"{source}_{name}"})
        with pytest.raises(TableError, match=f"'{name}' has the name of a column that scoring"):
            run(named)
    rows = spark.createDataFrame(
        [(1, "a", 7, 8, 9, 10, 11), (2, "b", 7, 8, 9, 10, 11)],
        "times long, text string, _net int, _added int, _last int, _nth int, `null` int",
    )
    rows.write.format("delta").option("delta.enableChangeDataFeed", "true").save(f"{source}_odd")
    odd = changed(settings, source={"table": f"{source}_odd", "key": "times"})
    for changes in ("cdf", "snapshot"):
        odd["target"] = {"table": f"{settings['target']['table']}_{changes}"}
        assert run(follow(odd, changes)).rows_in == 2
        spark.sql(f"UPDATE delta.`{source}_odd` SET _net = 70, _nth = 100 WHERE times = 1")
        if changes == "cdf":
            run(follow(odd, changes))
            target = spark.read.format("delta").load(odd["target"]["table"])
            assert [row._net for row in target.where("times = 1").collect()] == [70]


@pytest.mark.usefixtures("begun")
def test_a_column_of_another_type_or_name_is_an_error_until_it_is_as_it_was(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    before = content(spark, target)
    for columns, message in (
        (
            "CAST(id AS string) AS id, text",
            "its column 'id' is bigint, the job's is string; choose",
        ),
        ("id, text AS body", "source.text: no column 'text'; there are id, body"),
        ("id, struct(text AS a) AS text", "source.text: column 'text' is struct<a:string>"),
    ):
        rows = spark.read.format("delta").load(source).selectExpr(*columns.split(", "))
        rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(source)
        for changes in ("append", "snapshot"):
            with pytest.raises(TableError, match=re.escape(message)):
                run(follow(settings, changes))
        assert content(spark, target) == before
        spark.sql(f"RESTORE delta.`{source}` TO VERSION AS OF 0")
    a_snapshot_mends(spark, settings, run, rows_in=0)


def test_retry_has_no_budget_of_errors(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = run(settings).target
    spark.sql(
        f"UPDATE delta.`{target}` SET error = named_struct('code', 'worker_lost', 'detail', 'x'), "
        "entities = NULL, sentiment = NULL, text = NULL, text_hash = xxhash64(cast(NULL AS string))"
        " WHERE id IN (1, 2, 3)"
    )
    config = JobConfig.parse(changed(settings, limits={"max_error_fraction": 0.5}))
    summary = retry_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert (summary.rows_in, summary.rows_failed) == (3, {"null_text": 3})


def test_a_run_over_its_budget_and_a_snapshot_leave_nothing_in_the_way_of_a_purge(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    config = JobConfig.parse(settings)
    with pytest.raises(BudgetError):
        run(changed(settings, limits={"max_error_fraction": 0.01}))
    purge_target(spark, config, retain_hours=0)
    at_step(monkeypatch, microbatch, "batch_staged", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    with pytest.raises(TableError, match="holds rows that a run has scored and not committed"):
        purge_target(spark, config, retain_hours=0)
    run(follow(settings, "snapshot"))
    purge_target(spark, config, retain_hours=0)


@pytest.mark.usefixtures("begun")
def test_notes_of_other_writers_in_the_history_are_no_hindrance(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    rows = spark.read.format("delta").load(target).where("id = 1").selectExpr("*")
    for note in ("{not json", "[1]", "{}", "words"):
        rows.limit(0).write.format("delta").mode("append").option("userMetadata", note).save(target)
    add(spark, source, [(100, "new")])
    assert run(settings).rows_in == 1
