"""What tests of jobs are made of: changes of tables and settings, and runs that end at a step."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import microbatch
from tests.jobs import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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


def as_anew(spark: "SparkSession") -> None:
    """Let Delta forget the logs that it has read, as a new process has read none."""
    jvm: Any = spark._jvm
    jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


def at_step(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, action: Callable[[], object]
) -> None:
    """Let something happen once, when a run reaches a step."""
    left = [action]

    def reached(at: str) -> None:
        if at == step and left:
            left.pop()()

    monkeypatch.setattr(module, "reached", reached)


def stop() -> None:
    raise KeyboardInterrupt


def stopped_at(
    monkeypatch: pytest.MonkeyPatch, step: str, run: Run, settings: dict[str, Any]
) -> None:
    """Let a run end at a step of its first micro-batch, as if it were killed there."""
    at_step(monkeypatch, microbatch, step, stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
