"""Checkpoints, targets and sources that are not as a run left them: no row is lost."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    BusyError,
    JobConfig,
    TableError,
    failpoints,
    microbatch,
    retry_table,
    stream,
    todo,
)
from lakescore.purge import purge_target
from lakescore.tables import position, remove, stage, version
from tests.jobs import NOW, ROWS, Run
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
    for name, damage in (("commits/1", ""), ("offsets/1", ""), ("metadata", "garbage")):
        shutil.rmtree(checkpoint)
        shutil.copytree(latest, checkpoint)
        [file] = checkpoint.glob(f"*/stream-*/{name}")
        file.with_name(f".{file.name}.crc").unlink()
        file.write_text(damage)
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


def test_targets_that_share_a_checkpoint_leave_what_the_other_has_staged_and_is_to_read(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = settings["source"]["table"]
    mine, other = (
        changed(settings, target={"table": f"{tmp_path}/{name}", "checkpoint": f"{tmp_path}/all"})
        for name in ("mine", "other")
    )
    stopped_at(monkeypatch, "batch_staged", run, mine)
    run(follow(other, "snapshot"))
    summary = run(mine)
    assert summary.rows_in == len(ROWS)
    rows = spark.read.format("delta").load(f"{tmp_path}/mine").select("run_id").distinct()
    [scored_by] = [row.run_id for row in rows.collect()]
    assert scored_by != summary.mlflow_run_id  # but by the run before
    add(spark, source, [(100, "new")])
    for each in (mine, other):
        assert run(each).rows_in == 1
        assert content(spark, each["target"]["table"]) == content(spark, source)


@pytest.mark.usefixtures("begun")
def test_a_stage_of_which_files_are_gone_is_scored_anew(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(spark, settings["source"]["table"], [(100, "new")])
    stopped_at(monkeypatch, "batch_staged", run, settings)
    checkpoint = Path(f"{settings['target']['table']}_checkpoint")
    for file in checkpoint.glob("*/stage-stream/*/**/*.parquet"):
        file.unlink()
    with pytest.raises(BusyError, match="what is not in the target yet, the next run scores"):
        run(settings)
    assert run(settings).rows_in == 1


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize("step", ["todo_written", "batch_checked"])
def test_a_run_whose_rows_put_aside_were_removed_by_a_faster_one_says_so(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    target, is_todo = settings["target"]["table"], step == "todo_written"
    name = "todo" if is_todo else "stage-stream"

    def remove() -> None:
        [folder] = Path(f"{target}_checkpoint").glob(f"*/{name}")
        shutil.rmtree(folder)

    add(spark, settings["source"]["table"], [(100, "new")])
    at_step(monkeypatch, todo if is_todo else microbatch, step, remove)
    settings = follow(settings, "snapshot" if is_todo else "append")
    with pytest.raises(BusyError, match=r"another run of this job .* the next run scores"):
        run(settings)
    if is_todo:
        assert run(settings).rows_in == 1


@pytest.mark.usefixtures("begun")
def test_a_purge_removes_what_was_put_aside_for_a_former_target(
    spark: "SparkSession",
    settings: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for given in (None, f"{tmp_path}/all"):
        checkpoint = Path(given or f"{settings['target']['table']}_checkpoint")
        left = [checkpoint / "of another" / name for name in ("stage-stream", "todo/run")]
        for folder in (*left, checkpoint / "of a third/todo"):  # whose last run has ended
            folder.mkdir(parents=True)
        mine = changed(settings, target={"checkpoint": given})
        purge_target(spark, JobConfig.parse(mine), retain_hours=0)
        is_shared = given is not None
        for folder in left:
            assert folder.exists() == is_shared
            assert (f"{folder}: holds rows of a run" in caplog.text) == is_shared
        assert "of a third" not in caplog.text


@pytest.mark.usefixtures("begun")
def test_what_a_killed_retry_has_put_aside_goes_with_the_next_run_of_any_kind(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(f"{settings['target']['table']}_checkpoint")
    at_step(monkeypatch, todo, "todo_written", stop)
    with pytest.raises(KeyboardInterrupt):
        retry_table(spark, JobConfig.parse(settings), now=NOW)
    assert list(checkpoint.glob("*/todo/*"))
    run(settings)
    assert not list(checkpoint.glob("*/todo/*"))


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


def test_what_another_run_staged_with_other_settings_is_not_taken_over(
    spark: "SparkSession", tmp_path: Path
) -> None:
    folder, rows = str(tmp_path / "stage"), spark.range(3).repartition(3)
    stage.write(rows, folder, stage.Manifest(digest="theirs", target_version=1))
    stage.write(rows, folder, stage.Manifest(digest="theirs", target_version=2))
    with pytest.raises(
        BusyError, match=f"^{folder}: another run .*, with other models or settings"
    ):
        stage.write(rows, folder, stage.Manifest(digest="mine", target_version=1))
    spark.sql(f"OPTIMIZE delta.`{folder}`")  # as auto compaction may do it
    assert version(spark, folder) == 1
    assert stage.find(spark, folder) == stage.Manifest(digest="theirs", target_version=1)


def test_a_run_whose_stage_another_one_made_and_removed_meanwhile_is_busy(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save_aside = str(tmp_path / "stage"), stage.save_aside

    def late(*arguments: Any, **options: str) -> None:
        save_aside(*arguments, **options)
        try:
            save_aside(*arguments, **options)
        finally:
            remove(spark, folder)

    monkeypatch.setattr(stage, "save_aside", late)
    with pytest.raises(BusyError, match=f"^{folder}: another run .* was faster, and removed"):
        stage.write(spark.range(3), folder, stage.Manifest(digest="mine", target_version=1))


def test_a_stage_that_was_half_written_is_made_anew_where_delta_looks_for_a_log(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.errors import AnalysisException
    from pyspark.sql import DataFrameReader, DataFrameWriter

    folder = tmp_path / "stage"
    (folder / "_delta_log").mkdir(parents=True)
    (folder / "part-0.parquet").write_text("half a file")

    def as_databricks(function: Any) -> Any:
        """Databricks' Delta, here a stand-in, neither reads nor writes there."""

        def checked(self: Any, path: str) -> Any:
            if folder.is_dir() and not any(folder.glob("_delta_log/*.json")):
                raise AnalysisException("[DELTA_MISSING_TRANSACTION_LOG] Incompatible format")
            return function(self, path)

        return checked

    monkeypatch.setattr(DataFrameReader, "load", as_databricks(DataFrameReader.load))
    monkeypatch.setattr(DataFrameWriter, "save", as_databricks(DataFrameWriter.save))
    manifest = stage.Manifest(digest="mine", target_version=1)
    assert stage.find(spark, str(folder)) is None
    stage.write(spark.range(3), str(folder), manifest)
    assert stage.find(spark, str(folder)) == manifest
    assert not (folder / "part-0.parquet").exists()
