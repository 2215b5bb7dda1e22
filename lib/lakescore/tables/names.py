"""Delta tables by name or path: how they are quoted, opened and described."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from lakescore.errors import TableError, root_cause

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Databricks' own: a folder has files, as a write that was killed leaves them, and no log.
NO_LOG = "DELTA_MISSING_TRANSACTION_LOG"
# What Spark and Delta say of a table that is not there; all else is about one that is.
_MISSING = frozenset(
    {
        NO_LOG,
        "DELTA_MISSING_DELTA_TABLE",
        "DELTA_PATH_DOES_NOT_EXIST",
        "DELTA_TABLE_NOT_FOUND",
        "PATH_NOT_FOUND",
        "SCHEMA_NOT_FOUND",
        "TABLE_OR_VIEW_NOT_FOUND",
    }
)
_PARTS = re.compile(r"`(?:[^`]|``)+`|[^`.]+")


def is_path(table: str) -> bool:
    """Tell a path (anything with a slash) from a name in the catalog."""
    return "/" in re.sub("`[^`]*`", "", table)


def path_in(table: str) -> str | None:
    """Return the path in a name of the form delta.`path`; None where a table is not so named."""
    if is_path(table):
        return None
    first, *rest = _parts(table)
    return rest[0] if first.lower() == "delta" and len(rest) == 1 and "/" in rest[0] else None


def quoted(name: str) -> str:
    """Return a column or a part of a table's name for Spark: it may hold a dot or a space.

    Raises:
        TableError: it holds a variable of Spark's SQL, which is put in between quotes, too.
    """
    if "${" in name:
        raise TableError(
            f"{name}: holds ${{, where Spark's SQL puts the value of a variable; give the column, "
            "the table or the path a name without it"
        )
    return "`" + name.replace("`", "``") + "`"


def identifier(table: str) -> str:
    """Return a table for SQL, each part of its name in quotes, whatever is in it.

    Raises:
        TableError: it is not of the form a, a.b or a.b.c, or holds a variable of Spark's SQL.
    """
    if is_path(table):
        return f"delta.{quoted(absolute(table))}"
    return ".".join(map(quoted, _parts(table)))


def beside(table: str, suffix: str) -> str:
    """Return the name or path of a table that belongs to `table`: scored -> scored_runs."""
    if is_path(table):
        return table.rstrip("/") + suffix
    *parents, last = _parts(table)
    return ".".join([*map(quoted, parents), quoted(last + suffix)])


def place(table: str) -> str:
    """Return what tells a table from every other: its name's parts, or its absolute path."""
    if not is_path(table):
        return identifier(table)
    return absolute(table)


def absolute(path: str) -> str:
    """Return a path that holds in any working folder: SQL takes no other, and a JVM has its own.

    Raises:
        TableError: it is relative, on Databricks, whose working folder is no place for tables.
    """
    if ":/" in path:
        return path.rstrip("/")
    if "DATABRICKS_RUNTIME_VERSION" in os.environ and not path.startswith("/"):
        raise TableError(
            f"{path}: is a relative path; on Databricks write an absolute one, such as "
            "/Volumes/…, or for a table its name in the catalog, which has no slash"
        )
    return os.path.abspath(path)


def _parts(name: str) -> list[str]:
    """Take a name in the catalog apart."""
    found = _PARTS.findall(name)
    if not 1 <= len(found) <= 3 or ".".join(found) != name:
        raise TableError(
            f"{name}: is not the name of a table; write catalog.schema.table, a part with "
            "another character than letters, digits and _ in backticks"
        )
    return [part[1:-1].replace("``", "`") if part[0] == "`" else part for part in found]


def load(spark: "SparkSession", table: str, *, version: int | None = None) -> "DataFrame":
    """Read a Delta table by name or path, at its latest version if none is given.

    Raises:
        TableError: there is no such table, or it is not Delta.
    """
    found = _find(spark, table, version)
    if found is None:
        remedy = f"name the table as the catalog does, or its path with a slash (./{table})"
        if is_path(table):
            remedy = "name the folder that holds its _delta_log, or the table as the catalog does"
        kind = "path" if is_path(table) else "name"
        raise TableError(f"{table}: no Delta table under this {kind}; {remedy}")
    return found


def exists(spark: "SparkSession", table: str) -> bool:
    """Tell whether there is a Delta table of that name or path."""
    return _find(spark, table, None) is not None


def condition(error: Exception) -> str:
    """Return the name that Spark or Delta gives an error, as TABLE_OR_VIEW_NOT_FOUND."""
    name = getattr(error, "getCondition", None) or getattr(error, "getErrorClass", None)
    if name and (told := name()):
        return str(told)
    # An error that came over Spark Connect 3.5 has its name only in what it says.
    begins = re.match(r"\[([A-Z][A-Z0-9_.]*)\]", str(error))
    return begins[1] if begins else ""


def _find(spark: "SparkSession", table: str, version: int | None) -> "DataFrame | None":
    """Read a table; None where there is none.

    Raises:
        TableError: something is there that cannot be read, or the name is none.
    """
    from pyspark.errors import AnalysisException

    reader = spark.read.format("delta") if is_path(table) else spark.read
    if version is not None:
        reader = reader.option("versionAsOf", version)
    try:
        with _reachable(table):
            found = (
                reader.load(absolute(table)) if is_path(table) else reader.table(identifier(table))
            )
            found.schema  # noqa: B018  # Connect looks for the table only when it is asked
        return found
    except AnalysisException as error:
        if condition(error) in _MISSING:
            return None
        reason = str(error).strip().splitlines()[0][:200]
        raise TableError(f"{table}: cannot be read; check the name and the grants: {reason}") from (
            error
        )


@contextmanager
def _reachable(table: str) -> Iterator[None]:
    """Say of a table that cannot be read in Java's own words, as where a file system is not there.

    Raises:
        TableError: it cannot.
    """
    from pyspark.errors import AnalysisException, PySparkException

    try:
        yield
    except AnalysisException:
        raise
    except Exception as error:  # Java's own
        if not isinstance(error, PySparkException) and not hasattr(error, "java_exception"):
            raise
        raise TableError(
            f"{table}: cannot be read; name a path or a table that this Spark can reach "
            f"({root_cause(error)})"
        ) from error


def literal(value: Any) -> str:
    """Return a value for SQL: of text, a number or a date."""
    if isinstance(value, date):
        return f"DATE'{value.isoformat()}'"
    if isinstance(value, str):
        # Of a ${ Spark would make the value of a variable, in quotes as anywhere.
        for found, instead in (("\\", "\\\\"), ("'", "\\'"), ("$", "\\u0024")):
            value = value.replace(found, instead)
        return f"'{value}'"
    return str(value)


def history(spark: "SparkSession", table: str, limit: int | None = None) -> "DataFrame":
    """Return the commits of a Delta table, the latest first, as far as its log still has them.

    Raises:
        TableError: there is no such table, or it is a view, or of another format.
    """
    last = "" if limit is None else f" LIMIT {limit}"
    return _said(spark, table, f"DESCRIBE HISTORY {identifier(table)}{last}")


def _said(spark: "SparkSession", table: str, statement: str) -> "DataFrame":
    """Return what Delta says of a table: by SQL, which Spark Connect has, too."""
    from pyspark.errors import AnalysisException

    load(spark, table)
    try:
        with _reachable(table):
            return spark.sql(statement)
    except AnalysisException as error:
        raise TableError(
            f"{table}: is not a Delta table; name one, or save it with format delta"
        ) from error


@dataclass(frozen=True, slots=True)
class Details:
    """What Delta knows of a table without reading it; `id` is new when a table is made anew.

    `location` is the folder of its files, with its scheme.
    """

    id: str
    location: str
    properties: Mapping[str, str]
    bytes: int
    files: int


def describe(spark: "SparkSession", table: str) -> Details:
    """Return a table's details.

    Raises:
        TableError: there is no such table, or it is not Delta.
    """
    row = _said(spark, table, f"DESCRIBE DETAIL {identifier(table)}").first()
    if row is None or row["format"] != "delta":
        raise TableError(f"{table}: is not a Delta table; name one, or save it with format delta")
    size, files = int(row["sizeInBytes"] or 0), int(row["numFiles"] or 0)
    return Details(row["id"], row["location"], row["properties"] or {}, size, files)


def version(spark: "SparkSession", table: str) -> int:
    """Return the number of a Delta table's latest commit.

    Raises:
        TableError: there is no such table, or it is a view, or of another format.
    """
    row = history(spark, table, 1).select("version").first()
    assert row is not None  # a table has a commit
    return int(row["version"])
