"""What a run puts aside, half written, taken over or left behind: none of it is lost or stays."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BusyError,
    JobConfig,
    TableError,
    microbatch,
    retry_table,
    todo,
)
from lakescore.purge import purge_target
from lakescore.tables import remove, stage, version
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import (
    add,
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
@pytest.mark.parametrize("with_sum", [False, True])
def test_a_stage_of_which_files_are_damaged_is_scored_anew(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    with_sum: bool,
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(100, "new")])
    stopped_at(monkeypatch, "batch_staged", run, settings)
    checkpoint = Path(f"{target}_checkpoint")
    for file in checkpoint.glob("*/stage-stream/*/**/*.parquet"):
        if not with_sum:
            file.with_name(f".{file.name}.crc").unlink()
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TableError, match=r"put aside there is damaged, .* run the job again"):
        run(settings)
    assert run(settings).rows_in == 1
    assert content(spark, target) == content(spark, source)


def test_a_stage_is_kept_where_it_cannot_be_read_for_a_moment(
    spark: "SparkSession", tmp_path: Path
) -> None:
    folder = f"{tmp_path}/stage"
    stage.save_aside(spark.range(1).toDF("id"), folder)
    for reason, is_left in (("SocketTimeoutException", True), ("is not a Parquet file", False)):
        said = f"Encountered error while reading file file:{folder}/part.parquet: {reason}"
        expected = OSError if is_left else TableError
        with pytest.raises(expected), stage.kept(spark, folder):
            raise OSError(said)
        assert Path(folder).exists() == is_left


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
