"""Targets that several jobs write, at once or in turn: each has its rows, and no other's."""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BusyError,
    JobConfig,
    TableError,
    failpoints,
    microbatch,
    rescore_table,
    tables,
    todo,
)
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import ONE_SNAPSHOT, add, as_anew, at_step, changed, content, follow
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.fixture
def other(spark: "SparkSession", settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a job from another source, which has the row 1000, into the same target."""
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, f"{source}_other", [(1000, "other")])
    return changed(
        settings, source={"table": f"{source}_other"}, target={"checkpoint": f"{target}_other"}
    )


@pytest.fixture
def shared(
    begun: None, settings: dict[str, Any], run: Run, other: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a job by append; the other one has run into its target, too."""
    run(other)
    return settings


@pytest.fixture
def following(
    followed: None, settings: dict[str, Any], run: Run, other: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a job by cdf; the other one has run into its target, too."""
    run(other)
    return follow(settings, "cdf")


def test_a_snapshot_and_a_rescore_leave_the_rows_of_another_source_alone(
    spark: "SparkSession",
    run: Run,
    shared: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, target = shared["source"]["table"], shared["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 5")
    summary = run(follow(shared, "snapshot"))
    assert (summary.rows_in, summary.rows_deleted) == (0, 5)
    expected = content(spark, source) | content(spark, f"{source}_other")
    assert content(spark, target) == expected
    with pytest.raises(TableError, match=r"holds rows of .*source_other too, which target.write"):
        run(changed(follow(shared, "snapshot"), target={"write": "overwrite"}))

    new = tiny_model(tmp_path / "new", head="sequence-classification", seed=5)
    config = JobConfig.parse(changed(shared, tasks={"sentiment": {"model": str(new)}}))
    again = rescore_table(spark, config, now=NOW)
    assert again.rows_in == len(ROWS) - 5
    rows = spark.read.format("delta").load(target)
    assert rows.where(f"run_id = '{again.mlflow_run_id}' AND id >= 1000").count() == 0
    assert content(spark, target) == expected

    for begin, end in (("", "_away"), ("_other", ""), ("_away", "_other")):  # they change names
        shutil.move(f"{source}{begin}", f"{source}{end}")
    as_anew(spark)
    assert run(follow(shared, "snapshot")).rows_deleted == 0
    assert "holds rows of" in caplog.text
    assert content(spark, target) == expected


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize("changes", ["append", "snapshot"])
def test_a_source_with_another_key_is_refused(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    other: dict[str, Any],
    changes: str,
) -> None:
    before = content(spark, settings["target"]["table"])
    with pytest.raises(TableError, match=r"by source.key \(id\), those of .* by \(text\); name "):
        run(changed(other, source={"key": "text", "changes": changes}))
    assert content(spark, settings["target"]["table"]) == before


def test_an_overwrite_ends_where_another_job_has_begun_to_write(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    other: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register, left = tables.writers.register, [lambda: run(other)]

    def registered(*arguments: Any, **more: Any) -> None:
        register(*arguments, **more)
        if left:
            left.pop()()

    monkeypatch.setattr(tables.writers, "register", registered)
    with pytest.raises(BusyError, match="another job has begun to write to it"):
        run(changed(follow(settings, "snapshot"), target={"write": "overwrite"}))
    assert content(spark, settings["target"]["table"]) == {1000: "other"}


def test_jobs_that_begin_at_once_are_both_recorded_in_their_target(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    other: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    # The other one runs from its start to its end while this one has read the target.
    at_step(monkeypatch, todo, "todo_written", lambda: run(other))
    run(follow(settings, "snapshot"))
    assert content(spark, target) == dict(ROWS) | {1000: "other"}
    recorded = spark.sql(f"DESCRIBE DETAIL delta.`{target}`").collect()[0].properties
    writers = [json.loads(recorded[each]) for each in recorded if each.startswith("lakescore.w")]
    assert {each["source"] for each in writers} == {source, f"{source}_other"}


def a_key_that_comes_just_before_the_commit_is_refused(
    spark: "SparkSession",
    run: Run,
    mine: dict[str, Any],
    other: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = mine["source"]["table"], mine["target"]["table"]
    add(spark, source, [(500, "mine"), (501, "mine")])
    add(spark, f"{source}_other", [(500, "other")])
    at_step(monkeypatch, microbatch, "batch_checked", lambda: run(other))
    with pytest.raises(TableError, match=r"1 of 2 new rows have a key \(id\) that .* already"):
        run(mine)
    assert content(spark, target)[500] == "other"
    assert not list(Path(f"{target}_checkpoint").glob("*/stage-stream"))  # which holds texts


def test_a_key_that_comes_into_the_target_just_before_an_append_is_refused(
    spark: "SparkSession",
    run: Run,
    shared: dict[str, Any],
    other: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_key_that_comes_just_before_the_commit_is_refused(spark, run, shared, other, monkeypatch)


@pytest.mark.usefixtures("followed")
def test_a_key_that_a_new_job_brings_just_before_a_merge_is_refused(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    other: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = follow(settings, "cdf")
    a_key_that_comes_just_before_the_commit_is_refused(spark, run, mine, other, monkeypatch)


@pytest.mark.usefixtures("followed")
def test_a_stream_ends_where_a_snapshot_of_its_source_has_begun(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failpoints, "UNLOCKED", True)
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = follow(settings, "cdf")
    add(spark, source, [(100, "new")])
    at_step(monkeypatch, microbatch, "batch_checked", lambda: run(follow(settings, "snapshot")))
    with pytest.raises(BusyError, match="another run"):
        run(settings)
    assert content(spark, target) == content(spark, source)
    assert run(settings).rows_in == 0


def test_what_a_snapshot_could_not_remove_is_not_forgotten_by_the_stream_after_it(
    spark: "SparkSession",
    run: Run,
    other: dict[str, Any],
    following: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, target = following["source"]["table"], following["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 7")
    shutil.move(other["source"]["table"], f"{source}_away")
    assert run(follow(following, "snapshot")).rows_deleted == 0
    assert "what was deleted from" in caplog.text
    add(spark, source, [(100, "new")])
    for rows_in in (1, 0):
        caplog.clear()
        assert run(following).rows_in == rows_in
        assert re.search(rf"up to version \d may still be in it, .*{ONE_SNAPSHOT}", caplog.text)
    shutil.move(f"{source}_away", other["source"]["table"])
    assert run(follow(following, "snapshot")).rows_deleted == 1
    caplog.clear()
    assert run(following).rows_in == 0
    assert "may still be" not in caplog.text
    assert content(spark, target) == content(spark, source) | {1000: "other"}


def test_what_came_and_went_in_one_source_is_not_taken_from_another_which_is_to_be_readable(
    spark: "SparkSession", run: Run, other: dict[str, Any], following: dict[str, Any]
) -> None:
    source, target = following["source"]["table"], following["target"]["table"]
    add(spark, source, [(5, "double"), (1000, "mine")])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IN (5, 1000)")
    shutil.move(other["source"]["table"], f"{source}_away")
    with pytest.raises(TableError, match=r"_other too, which cannot be read.*ALTER TABLE") as it:
        run(following)
    assert content(spark, target).keys() == {*range(60), 1000}
    shutil.move(f"{source}_away", other["source"]["table"])
    assert run(following).rows_deleted == 1
    assert content(spark, target) == content(spark, source) | {1000: "other"}

    rows = [(1000, "mine"), (1001, "mine")]
    frame = spark.createDataFrame(rows, "id long, text string").repartition(2, "id")
    frame.write.format("delta").mode("append").save(source)
    with pytest.raises(TableError, match=r"1 keys \(id\) are in .*_other, too|have a key \(id\)"):
        run(changed(following, source={"max_files": 1}))
    assert content(spark, target)[1000] == "other"
    remedy = re.search(r"ALTER TABLE .*", str(it.value))
    assert remedy
    spark.sql(remedy[0])
