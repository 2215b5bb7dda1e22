"""The bill of every run: one row in `<target>_runs`, written when all else is done."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lakescore.errors import TableError
from lakescore.tables.commits import committed, own_transaction
from lakescore.tables.names import beside, exists, load
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
    Mapping[str, int]: "map<string,bigint>",
    Mapping[str, str]: "map<string,string>",
}
_SCHEMA = ", ".join(f"{each.name} {_TYPES[each.type]}" for each in fields(Bill))


def table_of(target: str) -> str:
    """Return the name or path of a target's bills."""
    return beside(target, "_runs")


def prepare(spark: "SparkSession", target: str) -> None:
    """Make the table of a target's bills, or see that it takes one, before anything is scored.

    Raises:
        TableError: it cannot be made, or has a column of another type.
    """
    table = table_of(target)
    if not exists(spark, table):
        none = spark.createDataFrame([], _SCHEMA)
        # Of whatever transaction: a new table has none that Delta could take it for.
        committed(spark, table, lambda: append(none, table))
    types = {each.name: each.dataType.simpleString() for each in load(spark, table).schema}
    if "run_id" not in types:
        raise TableError(
            f"{table}: is not a table of bills, as it has no column 'run_id'; rename it, for the "
            "bills of runs go there"
        )
    for each in fields(Bill):
        has, wants = types.get(each.name), _TYPES[each.type]
        if has not in (None, wants):
            raise TableError(
                f"{table}: its column {each.name!r} is {has}, that of a bill is {wants}; rename "
                "that table, for the bills of runs go there"
            )


def write(spark: "SparkSession", target: str, bill: Bill) -> None:
    """Add a run's bill to those of its target.

    Raises:
        TableError: it cannot be written.
    """
    table = table_of(target)
    values = [tuple(getattr(bill, each.name) for each in fields(Bill))]
    row = spark.createDataFrame(values, _SCHEMA)
    # With columns that this version of lakescore adds to those that an older one made.
    once = own_transaction("bill")
    committed(spark, table, lambda: append(row.coalesce(1), table, mergeSchema="true", **once))
