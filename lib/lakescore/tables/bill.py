"""The bill of every run: one row in `<target>_runs`, written when all else is done."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lakescore.tables.commits import committed
from lakescore.tables.names import beside
from lakescore.tables.writing import append

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a run did, up to its end or to the error that ended it.

    Rows in are rows scored and rows failed together; rows deleted or only refreshed had nothing to
    be scored. Source versions are the first and the last that were read.
    """

    run_id: str
    command: str
    status: str
    error: str | None
    source: str
    source_version_first: int | None
    source_version_last: int | None
    rows_in: int
    rows_scored: int
    rows_failed: Mapping[str, int]
    rows_refreshed: int
    rows_deleted: int
    tokens: int
    seconds: float
    rows_per_second: float
    models: Mapping[str, str]
    fingerprints: Mapping[str, str]
    started_at: datetime
    ended_at: datetime


_TYPES: dict[Any, str] = {
    str: "string",
    str | None: "string",
    int: "bigint",
    int | None: "bigint",
    float: "double",
    datetime: "timestamp",
    Mapping[str, int]: "map<string, bigint>",
    Mapping[str, str]: "map<string, string>",
}


def table_of(target: str) -> str:
    """Return the name or path of a target's bills."""
    return beside(target, "_runs")


def write(spark: "SparkSession", target: str, bill: Bill) -> None:
    """Add a run's bill to those of its target.

    Raises:
        TableError: it cannot be written.
    """
    table = table_of(target)
    schema = ", ".join(f"{each.name} {_TYPES[each.type]}" for each in fields(Bill))
    values = [tuple(getattr(bill, each.name) for each in fields(Bill))]
    row = spark.createDataFrame(values, schema)
    # With columns that this version of lakescore adds to those that an older one made.
    committed(spark, table, lambda: append(row.coalesce(1), table, mergeSchema="true"))
