"""Tables that were dropped, made anew, overwritten or given other columns: no row is lost."""

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import BudgetError, JobConfig, TableError, rescore_table
from lakescore.purge import purge_target
from lakescore.tables import describe
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import add, as_anew, changed, content, follow, stopped_at

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.mark.usefixtures("followed")
def test_a_table_overwritten_by_itself_is_followed_in_micro_batches_of_one_file(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = changed(settings, source={"changes": "cdf", "max_files": 1})
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


@pytest.mark.usefixtures("begun")
def test_a_target_that_was_dropped_is_scored_from_the_start(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    shutil.rmtree(target)
    assert run(settings).rows_in == 60
    assert content(spark, target) == content(spark, source)


@pytest.mark.usefixtures("begun")
def test_a_source_that_is_made_anew_or_comes_back_is_followed_and_never_read_on_from_where_it_was(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(100, "new")])
    assert run(settings).rows_in == 1
    shutil.move(source, f"{source}_first")
    as_anew(spark)
    add(spark, source, [*ROWS[5:], (200, "other")])
    with pytest.raises(TableError, match="was made anew"):
        run(settings)
    summary = run(follow(settings, "snapshot"))
    assert (summary.rows_in, summary.rows_deleted) == (1, 6)
    add(spark, source, [(101, "newer")])
    assert run(settings).rows_in == 1
    shutil.rmtree(source)
    shutil.move(f"{source}_first", source)
    as_anew(spark)
    renamed = changed(settings, source={"table": f"file:{source}"})
    with pytest.raises(TableError, match="was made anew"):
        run(renamed)
    run(follow(renamed, "snapshot"))
    assert content(spark, target) == content(spark, source)
    recorded = [name for name in describe(spark, target).properties if "lakescore.writer" in name]
    assert recorded == [f"lakescore.writer.{describe(spark, source).id}"]


@pytest.mark.usefixtures("followed")
def test_scores_of_a_task_that_the_job_has_no_more_leave_with_their_text(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = changed(settings, source={"changes": "cdf"}, target={"evolve": True})
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

    spark.sql(f"UPDATE delta.`{source}` SET text = 'Berta' WHERE id = 2")
    without = changed(fewer, source={"columns": []})
    assert run(without).rows_in == 1
    spark.sql(f"UPDATE delta.`{target}` SET model = map('entities', 'old') WHERE id = 1")
    assert rescore_table(spark, JobConfig.parse(without), now=NOW).rows_in == 1
    texts = content(spark, target)
    assert (texts[1], texts[2]) == ("Anna", None)  # not the one that was scored before


@pytest.mark.usefixtures("begun")
def test_a_column_of_another_type_or_name_is_an_error_until_it_is_as_it_was(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    before = content(spark, target)
    for changes, columns, message in (
        (
            "append",
            "CAST(id AS string) AS id, text",
            "its column 'id' is bigint, the job's is string; choose",
        ),
        (
            "snapshot",
            "id, text AS body",
            "source.text: no column 'text'; there are id, body",
        ),
        (
            "append",
            "id, struct(text AS a) AS text",
            "source.text: column 'text' is struct<a:string>",
        ),
    ):
        rows = spark.read.format("delta").load(source).selectExpr(*columns.split(", "))
        rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(source)
        with pytest.raises(TableError, match=re.escape(message)):
            run(follow(settings, changes))
        spark.sql(f"RESTORE delta.`{source}` TO VERSION AS OF 0")
    assert content(spark, target) == before
    assert run(follow(settings, "snapshot")).rows_in == 0


def test_a_run_over_its_budget_and_a_snapshot_leave_nothing_in_the_way_of_a_purge(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = JobConfig.parse(settings)
    with pytest.raises(BudgetError):
        run(changed(settings, limits={"max_error_fraction": 0.01}))
    purge_target(spark, config, retain_hours=0)
    stopped_at(monkeypatch, "batch_staged", run, settings)
    with pytest.raises(TableError, match="holds rows that a run has scored and not committed"):
        purge_target(spark, config, retain_hours=0)
    run(follow(settings, "snapshot"))
    purge_target(spark, config, retain_hours=0)
