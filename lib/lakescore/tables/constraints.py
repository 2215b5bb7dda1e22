"""The CHECK constraints that others gave a target: rows are held to them before Delta logs one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lakescore.config import Write
from lakescore.errors import RefusedRowsError
from lakescore.tables.changes import (
    CHANGE,
    DELETE,
    HASH,
    INSERT,
    REFRESH,
    RESCORE,
    UPDATE,
    same_key,
)
from lakescore.tables.commits import with_settings, write_error
from lakescore.tables.names import condition, describe, load, quoted
from lakescore.tables.writing import within

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# What the name of a constraint begins with among a table's properties; those of lakescore's own.
CHECK = "delta.constraints."
OWN = f"{CHECK}lakescore_"


def check_constraints(
    staged: "DataFrame",
    table: str,
    how: Write,
    *,
    key: Sequence[str],
    ranges: Mapping[str, tuple[str, str]],
    results: Sequence[str],
    outdated: Sequence[str],
) -> None:
    """Check rows by the CHECK constraints of others: Delta would log the row that it refuses.

    Args:
        staged: the target's columns and `CHANGE`.
        table: the target.
        how: whether rows are merged with those that are there.
        key: the target's key.
        ranges: those of the keys in `staged`, as SQL: other files of the target are not read.
        results: the columns that scoring makes.
        outdated: the target's columns whose value would not belong to a new score.

    Raises:
        RefusedRowsError: a row does not keep to one.
        TableError: the disk is full, for instance.
    """
    from pyspark.sql import functions as F

    spark = staged.sparkSession
    properties = describe(spark, table).properties
    checks = {
        name.removeprefix(CHECK): expression
        for name, expression in properties.items()
        if name.startswith(CHECK) and not name.startswith(OWN)
    }
    if not checks:
        return
    there = within(load(spark, table), ranges)
    rows = _after(staged, there, how, key=key, results=results, outdated=outdated)
    try:
        # Where ANSI mode has an error, which would quote the row, there is a null without it.
        with with_settings(spark, {"spark.sql.ansi.enabled": "false"}):
            refused = (
                F.count_if(~F.coalesce(F.expr(each), F.lit(False))) for each in checks.values()
            )
            found = rows.agg(*refused).head()
    except Exception as error:  # Spark's and Java's own
        if (known := write_error(table, error)) is not None:
            raise known from error
        told = condition(error)
        if not told or told.startswith(("FAILED_READ_FILE", "DELTA_", "INTERNAL_ERROR")):
            raise
        names = ", ".join(checks)
        raise RefusedRowsError(
            f"{table}: a constraint of it has no value for a row ({told}); drop or change it (of "
            f"{names}), or take such rows out of the source"
        ) from None
    assert found is not None  # an aggregate without groups has one row
    for name, count in zip(checks, found, strict=True):
        if count:
            raise RefusedRowsError(
                f"{table}: a constraint of it refuses a row; drop {name}, to which {count:,} rows "
                "do not keep, or take such rows out of the source"
            )


def _after(
    staged: "DataFrame",
    there: "DataFrame",
    how: Write,
    *,
    key: Sequence[str],
    results: Sequence[str],
    outdated: Sequence[str],
) -> "DataFrame":
    """Return the rows that a target will have of staged ones, with all of its columns."""
    from pyspark.sql import functions as F

    mine = staged.where(F.col(CHANGE) != DELETE).alias("s")
    its = (there if how == "merge" else there.limit(0)).alias("t")
    change = F.col(f"s.{CHANGE}")
    is_whole = change.isin(INSERT, UPDATE)
    is_current = F.col(f"s.{HASH}") == F.col(f"t.{HASH}")  # else its text is another by now
    columns = []
    for each in there.schema:
        old, new = F.col(f"t.{quoted(each.name)}"), F.lit(None).cast(each.dataType)
        if each.name in staged.columns:
            new = F.col(f"s.{quoted(each.name)}")
        if each.name in key:
            kept = F.lit(False)
        elif each.name in results or each.name in outdated:
            kept = change == REFRESH
        else:
            kept = change == RESCORE if each.name in staged.columns else F.lit(True)
        columns.append(F.when(kept, old).otherwise(new).alias(each.name))
    joined = mine.join(its, same_key(key), "left").where(is_whole | is_current)
    return joined.select(*columns)
