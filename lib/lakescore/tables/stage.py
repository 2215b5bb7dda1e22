"""A micro-batch that was scored and is not in the target yet: it outlives a crash in between.

A stage is a Delta table of one commit in the checkpoint's folder, so that it is there whole or
not at all, and of two runs that make the same one at once a single one does. It goes once its
micro-batch is in the target.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lakescore.errors import BusyError
from lakescore.tables.names import delta_table, exists

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a stage holds: a micro-batch of an application, scored as `digest` says.

    `target_version` is the target's when it was staged: if it was committed, then after that.
    """

    app: str
    number: int
    digest: str
    target_version: int

    def is_of(self, app: str, number: int) -> bool:
        """Tell whether it is that micro-batch."""
        return (self.app, self.number) == (app, number)


def find(spark: "SparkSession", folder: str) -> Manifest | None:
    """Return what is staged in a folder; None where nothing is, or not wholly."""
    if not exists(spark, folder):
        return None
    row = delta_table(spark, folder).history(1).select("userMetadata").first()
    return Manifest(**json.loads(row[0]))


def write(scored: "DataFrame", folder: str, manifest: Manifest) -> None:
    """Score a micro-batch into a stage; where another run has just staged it, that one stays.

    Raises:
        BusyError: another run has staged another micro-batch.
        TableError: the folder cannot be written.
    """
    try:
        save_aside(scored, folder, userMetadata=json.dumps(asdict(manifest)))
    except Exception as error:  # Spark's, Delta's, and Java's own
        found = find(scored.sparkSession, folder)
        if found is None:
            raise
        if not found.is_of(manifest.app, manifest.number):
            raise BusyError(
                f"{folder}: another run of this job is at work; it has the rows"
            ) from error


def save_aside(rows: "DataFrame", folder: str, *by: str, **options: str) -> None:
    """Save rows as a new Delta table, divided `by` columns, that goes when the run has ended."""
    writer = rows.write.format("delta").mode("errorifexists").partitionBy(*by)
    # No statistics: they would put the beginnings of texts into the log.
    writer.options(**{"delta.dataSkippingNumIndexedCols": "0"} | options).save(folder)


def lost(said: str, checkpoint: str) -> BusyError | None:
    """Say that rows put aside went while they were read, if that is what an error says."""
    is_aside = any(f"/{name}/" in said for name in ("stage", "todo"))
    if is_aside and ("FILE_NOT_EXIST" in said or "FileNotFound" in said):
        return BusyError(f"{checkpoint}: another run of this job was faster; it has the rows")
    return None
