"""What happens beside a run, where no lock keeps others away, or between two runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import BusyError, SetupError, TableError, failpoints, stream, todo
from lakescore.tables.commits import with_settings
from lakescore.tables.stream import Offset
from tests.jobs import Run
from tests.spark.steps import add, as_anew, at_step, changed, content, follow, stopped_at

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.mark.usefixtures("followed")
def test_a_row_that_has_gone_over_to_another_source_of_the_target_stays(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    compared, streamed = (
        changed(
            follow(settings, changes),
            source={"table": f"{source}_{changes}"},
            target={"checkpoint": f"{target}_{changes}"},
        )
        for changes in ("snapshot", "append")
    )
    before = content(spark, target)
    add(spark, compared["source"]["table"], [(5, before[5])])
    add(spark, streamed["source"]["table"], [(7, before[7])])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IN (5, 6, 7)")
    assert run(compared).rows_in == 0  # which finds the row there
    assert run(follow(settings, "cdf")).rows_deleted == 2  # the stream has not run yet
    assert run(streamed).rows_in == 1

    add(spark, streamed["source"]["table"], [(8, before[8])])
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 8")
    assert run(follow(settings, "cdf")).rows_deleted == 0
    with pytest.raises(TableError, match=r"1 of 1 new rows have a key .* already; .*snapshot"):
        run(streamed)
    assert run(follow(streamed, "snapshot")).rows_in == 0  # which takes it over

    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 9")
    stopped_at(monkeypatch, "batch_staged", run, follow(settings, "cdf"))
    add(spark, compared["source"]["table"], [(9, before[9])])
    assert run(compared).rows_in == 0
    assert run(follow(settings, "cdf")).rows_deleted == 0  # whatever had been staged
    assert content(spark, target) == {nth: text for nth, text in before.items() if nth != 6}


@pytest.mark.usefixtures("begun")
def test_a_snapshot_ends_where_a_stream_has_written_while_it_compared(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failpoints, "UNLOCKED", True)
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(99, "first")])
    run(settings)  # by which the target knows of the stream

    def grow() -> None:
        add(spark, source, [(100, "new")])
        assert run(settings).rows_in == 1

    at_step(monkeypatch, todo, "todo_written", grow)
    with pytest.raises(BusyError, match=r"wrote to it, or .* was compared with it; run it again"):
        run(follow(settings, "snapshot"))  # which found nothing to write
    add(spark, source, [(101, "newer")])
    assert run(settings).rows_in == 1
    assert content(spark, target) == content(spark, source)


@pytest.mark.usefixtures("begun")
def test_a_stage_whose_log_is_damaged_is_scored_anew(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    # Delta's own sums, too, and a file whose own sum stays.
    cases = [({".json"}, b"", False), ({".json", ".crc"}, b"", False), ({".json"}, b"{}", True)]
    for nth, (kinds, left, with_sum) in enumerate(cases):
        add(spark, source, [(100 + nth, "new")])
        stopped_at(monkeypatch, "batch_staged", run, settings)
        [log] = Path(f"{target}_checkpoint").glob("*/stage-stream/*/_delta_log")
        for file in [each for each in log.glob("[!.]*") if each.suffix in kinds]:
            file.write_bytes(left)  # as a loss of power may leave it
            if not with_sum:
                file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
        as_anew(spark)
        assert run(settings).rows_in == 1
    assert content(spark, target) == content(spark, source)


def test_a_source_that_cannot_be_read_as_it_was_wants_a_snapshot(
    spark: "SparkSession", source: str
) -> None:
    end = Offset(whole=99, part=None, is_first=False)
    with pytest.raises(TableError, match=r"as it was at version 99, by VACUUM .*; run once with"):
        stream._as_of(spark, source, end)


@pytest.mark.usefixtures("begun")
def test_a_session_that_leaves_out_what_it_cannot_read_is_refused(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    for name in ("ignoreMissingFiles", "ignoreCorruptFiles"):
        losing = with_settings(spark, {f"spark.sql.files.{name}": "TRUE"})
        with losing, pytest.raises(SetupError, match=f"{name} is true in this session"):
            run(settings)


def test_threads_of_one_session_do_not_take_each_others_settings(spark: "SparkSession") -> None:
    name = "spark.lakescore.test"

    def work(nth: int) -> bool:
        with with_settings(spark, {name: str(nth)}):
            return all(spark.conf.get(name) == str(nth) for _ in range(20))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(20)))
    assert spark.conf.get(name, None) is None
