"""Where a stream over a source goes on, by what the target and the checkpoint remember."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakescore.errors import TableError
from lakescore.tables.names import place
from lakescore.tables.source import RECOVER, Source
from lakescore.tables.target import Writer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, slots=True)
class Position:
    """The checkpoint folder of a stream, and the version that it begins with if it is new."""

    folder: str
    starting_version: int | None


def recorded(writers: Sequence[Writer], source: Source) -> Writer | None:
    """Return what a target has recorded of a source: the same table, or one of its name."""
    for each in writers:
        if each.id == source.id or place(each.source) == place(source.table):
            return each
    return None


def check_writer(writer: Writer, source: Source, target: str, key: Sequence[str]) -> None:
    """Check that a target's rows are identified as the job would identify them.

    Raises:
        TableError: it was written by another key.
    """
    if writer.key != tuple(key):
        raise TableError(
            f"{target}: rows of {source.table} were written by source.key "
            f"({', '.join(writer.key)}), which is now ({', '.join(key)}); take that "
            "key again, or another target.table"
        )


def find(
    spark: "SparkSession",
    writer: Writer | None,
    *,
    source: Source,
    target: str,
    checkpoint: str,
) -> Position:
    """Return where the stream over a source goes on.

    Raises:
        TableError: the checkpoint was reset, or is another target's; the source was made anew.
    """
    if writer is None:
        folder = f"{checkpoint}/stream"
        if _has_commits(spark, folder):
            raise TableError(
                f"{target}: has no rows of {source.table}, but {checkpoint} remembers what was "
                "read for a target; if that is another one, name another target.checkpoint; if "
                "this one was deleted, delete that folder too, to score the source from its start"
            )
        return Position(folder, None)
    if writer.id != source.id:
        raise TableError(f"{source.table}: was made anew since {target} was written; {RECOVER}")
    if writer.query is None:
        if writer.version is None:
            raise TableError(
                f"{target}: a snapshot of {source.table} was begun and has not ended; {RECOVER}"
            )
        return Position(f"{checkpoint}/stream-{writer.version + 1}", writer.version + 1)
    position = Position(f"{checkpoint}/stream", None)
    if writer.version is not None:
        position = Position(f"{checkpoint}/stream-{writer.version + 1}", writer.version + 1)
    if query_id(spark, position.folder) != writer.query:
        raise TableError(
            f"{checkpoint}: is not the checkpoint that {target} was written with, which says what "
            f"of {source.table} was read; restore that one, or {RECOVER}"
        )
    return position


def query_id(spark: "SparkSession", folder: str) -> str | None:
    """Return the id that Spark gave the query of a checkpoint folder; None where there is none."""
    from pyspark.errors import AnalysisException

    try:
        row = spark.read.text(f"{folder}/metadata").first()
    except AnalysisException:  # there is no such file
        return None
    return None if row is None else str(json.loads(row[0])["id"])


def _has_commits(spark: "SparkSession", folder: str) -> bool:
    from pyspark.errors import AnalysisException

    try:
        return bool(spark.read.text(f"{folder}/commits").head(1))
    except AnalysisException:  # there is no such folder
        return False
