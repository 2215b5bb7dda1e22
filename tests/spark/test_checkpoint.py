"""Checkpoints, targets and sources that are not as a run left them: no row is lost."""

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    BusyError,
    TableError,
    failpoints,
    microbatch,
    stream,
    todo,
)
from lakescore.tables import position, version
from tests.jobs import ROWS, Run
from tests.spark.steps import (
    ONE_SNAPSHOT,
    a_snapshot_mends,
    add,
    as_anew,
    at_step,
    changed,
    content,
    follow,
    stop,
    stopped_at,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.mark.usefixtures("begun")
def test_a_checkpoint_that_is_lost_older_or_damaged_is_an_error_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    checkpoint, old, latest = Path(f"{target}_checkpoint"), tmp_path / "old", tmp_path / "latest"
    shutil.copytree(checkpoint, old)
    add(spark, source, [(100, "new")])
    run(settings)
    shutil.move(checkpoint, latest)
    add(spark, source, [(101, "newer")])
    before = content(spark, target)

    with pytest.raises(TableError, match=f"is not the checkpoint that .* or {ONE_SNAPSHOT}"):
        run(settings)
    shutil.rmtree(checkpoint)
    shutil.copytree(old, checkpoint)
    with pytest.raises(TableError, match=f"is older than .*target, which has .*{ONE_SNAPSHOT}"):
        run(settings)
    damages = (("commits/1", ""), ("offsets/1", ""), ("metadata", "garbage"))
    for (name, damage), with_sum in itertools.product(damages, (False, True)):
        shutil.rmtree(checkpoint)
        shutil.copytree(latest, checkpoint)
        [file] = checkpoint.glob(f"*/stream-*/{name}")
        if not with_sum:
            file.with_name(f".{file.name}.crc").unlink()
        file.write_text("garbage" if with_sum else damage)  # of nothing no sum is read
        with pytest.raises(TableError, match=f"{name}: is not as Spark wrote it.*{ONE_SNAPSHOT}"):
            run(settings)
    assert content(spark, target) == before
    a_snapshot_mends(spark, settings, run, rows_in=1)


@pytest.mark.usefixtures("compared")
def test_a_target_restored_after_a_run_that_was_killed_in_its_first_commit_is_an_error(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    before = spark.sql(f"DESCRIBE HISTORY delta.`{target}`").first()
    assert before is not None
    add(spark, source, [(100, "new")])
    stopped_at(monkeypatch, "batch_committed", run, settings)
    spark.sql(f"RESTORE delta.`{target}` TO VERSION AS OF {before.version}")
    with pytest.raises(TableError, match=f"was restored to a version that .*{ONE_SNAPSHOT}"):
        run(settings)


@pytest.mark.usefixtures("begun")
def test_that_a_target_was_restored_while_a_run_was_at_work_is_not_hidden_by_what_it_wrote_then(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(100, "new")])
    assert run(settings).rows_in == 1
    add(spark, source, [(101, "newer")])

    def restore() -> None:
        last = version(spark, target)
        spark.sql(f"RESTORE delta.`{target}` TO VERSION AS OF {last - 1}")

    at_step(monkeypatch, microbatch, "batch_staged", restore)
    assert run(settings).rows_in == 1
    assert content(spark, target) == dict(ROWS) | {101: "newer"}
    with pytest.raises(TableError, match=f"was restored to a version that .*{ONE_SNAPSHOT}"):
        run(settings)
    at_step(monkeypatch, todo, "todo_removed", restore)
    with pytest.raises(BusyError, match=r"or it was restored, while .*source was compared with it"):
        run(follow(settings, "snapshot"))
    a_snapshot_mends(spark, settings, run, rows_in=1)


def test_a_run_that_ends_in_an_error_bills_what_spark_has_written_down(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, stream, "query_ended", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    assert run(settings).rows_in == 0
    bills = spark.read.format("delta").load(f"{settings['target']['table']}_runs")
    found = {row.status: row.rows_in for row in bills.collect()}
    assert found == {"failed": len(ROWS), "finished": 0}


def put_back(spark: "SparkSession", folder: str, copy: str) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    as_anew(spark)


@pytest.mark.usefixtures("begun")
def test_a_target_that_was_restored_put_back_or_cloned_is_an_error_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    before = spark.sql(f"DESCRIBE HISTORY delta.`{target}`").first()
    assert before is not None
    shutil.copytree(target, f"{target}_old")
    spark.sql(f"CREATE TABLE delta.`{target}_copy` SHALLOW CLONE delta.`{target}`")
    add(spark, source, [(100, "late")])
    assert run(settings).rows_in == 1
    shutil.copytree(target, f"{target}_new")
    add(spark, source, [(101, "later")])

    def restore() -> None:
        spark.sql(f"RESTORE delta.`{target}` TO VERSION AS OF {before.version}")

    def clone() -> None:
        spark.sql(f"DELETE FROM delta.`{target}`")
        copy = f"SHALLOW CLONE delta.`{target}_copy`"
        spark.sql(f"CREATE OR REPLACE TABLE delta.`{target}` {copy}")

    for go_back in (restore, lambda: put_back(spark, target, f"{target}_old"), clone):
        put_back(spark, target, f"{target}_new")
        go_back()
        lacks = f"target: was restored to a version that lacks.*{ONE_SNAPSHOT}"
        with pytest.raises(TableError, match=lacks):
            run(settings)
        assert content(spark, target) == dict(ROWS)
    a_snapshot_mends(spark, settings, run, rows_in=2)


@pytest.mark.usefixtures("begun")
def test_a_source_whose_files_were_put_back_is_told_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    shutil.copytree(source, f"{source}_copy")
    told = f"an older state of it was put back; {ONE_SNAPSHOT}"
    add(spark, source, [(100, "late")])
    run(follow(settings, "snapshot"))
    put_back(spark, source, f"{source}_copy")
    with pytest.raises(TableError, match=told):
        run(settings)
    a_snapshot_mends(spark, settings, run, rows_in=0)
    put_back(spark, source, f"{source}_copy")
    with pytest.raises(TableError, match=told):  # of what a stream has read, too
        run(settings)
    assert 999 in content(spark, target)


@pytest.mark.usefixtures("followed")
def test_an_empty_change_leaves_a_commit_by_which_the_target_is_known(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = settings["source"]["table"]
    settings = follow(settings, "cdf")
    add(spark, source, [(100, "gone again")])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id >= 100")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_deleted) == (0, 0)
    add(spark, source, [(200, "new")])
    assert run(settings).rows_in == 1


@pytest.mark.usefixtures("begun")
def test_a_history_that_was_cleaned_up_does_not_widen_the_budget(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"ALTER TABLE delta.`{target}` SET TBLPROPERTIES (delta.checkpointInterval = 1)")
    spark.sql(f"ALTER TABLE delta.`{target}` SET TBLPROPERTIES (of_another = 1)")
    *old, _last = sorted(Path(target, "_delta_log").glob("*.json"))
    for each in old:  # as Delta does after delta.logRetentionDuration
        each.unlink()
        Path(each.parent, f".{each.name}.crc").unlink(missing_ok=True)
    as_anew(spark)
    spark.createDataFrame([(100, None)], "id long, text string").write.format("delta").mode(
        "append"
    ).save(source)
    with pytest.raises(BudgetError, match="1 of 1 rows failed"):
        run(changed(settings, limits={"max_error_fraction": 0.5}))
    assert run(settings).rows_in == 1


@pytest.mark.usefixtures("begun")
def test_rows_that_come_while_a_run_is_at_work_do_not_widen_its_budget(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = settings["source"]["table"]
    add(spark, source, [(nth, "new" if nth > 101 else None) for nth in range(100, 120)])
    more = [(nth, "newer") for nth in range(200, 300)]
    at_step(monkeypatch, microbatch, "batch_staged", lambda: add(spark, source, more))
    with pytest.raises(BudgetError, match="2 of 20 rows failed"):
        run(changed(settings, limits={"max_error_fraction": 0.05}))


def test_a_run_that_another_overtakes_is_busy_and_not_told_to_mend(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(monkeypatch, "batch_staged", run, settings)
    monkeypatch.setattr(failpoints, "UNLOCKED", True)
    trace = position.trace

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(position, "trace", trace)
        assert run(settings).rows_in == len(ROWS)
        return trace(*arguments)

    monkeypatch.setattr(position, "trace", overtaken)
    with pytest.raises(BusyError, match="another run of this job is at work"):
        run(settings)
    assert content(spark, settings["target"]["table"]) == dict(ROWS)
