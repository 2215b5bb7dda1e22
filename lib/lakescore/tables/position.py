"""Where a stream over a source goes on, by what the target and the checkpoint remember."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakescore.errors import TableError
from lakescore.tables.names import describe
from lakescore.tables.source import RECOVER, Source
from lakescore.tables.target import Writer, was_restored

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, slots=True)
class Position:
    """The checkpoint folder of a stream, and the version that it begins with if it is new."""

    folder: str
    starting_version: int | None


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

    Each target and source, and each version to begin with, has a folder of its own in the
    checkpoint: none can be taken for another's.

    Raises:
        TableError: the checkpoint was reset; the source was made anew; the target was restored.
    """
    if writer is not None and writer.id != source.id:
        raise TableError(f"{source.table}: was made anew since {target} was written; {RECOVER}")
    if writer is not None and writer.snapshot is not None:
        raise TableError(
            f"{target}: a snapshot of {source.table} was begun and has not ended; {RECOVER}"
        )
    start = None if writer is None or writer.version is None else writer.version + 1
    name = f"stream-{describe(spark, target).id[:8]}-{source.id[:8]}"
    folder = f"{checkpoint}/{name}" + ("" if start is None else f"-{start}")
    if writer is None or writer.query is None:
        is_restored = _has_commits(spark, folder)
    elif query_id(spark, folder) == writer.query:
        is_restored = was_restored(spark, target, writer)
    else:
        raise TableError(
            f"{checkpoint}: is not the checkpoint that {target} was written with, which says what "
            f"of {source.table} was read; restore that one, or {RECOVER}"
        )
    if is_restored:
        raise TableError(
            f"{target}: was restored to a version that lacks rows which {checkpoint} says were "
            f"written; {RECOVER}"
        )
    return Position(folder, start)


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
