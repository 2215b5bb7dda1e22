"""Forgetting: what was deleted from a target leaves its files, too."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lakescore.config import JobConfig
from lakescore.errors import ConfigError, TableError
from lakescore.places import RUNS, STREAM_STAGES, checkpoint_of, folder_in, job_tables
from lakescore.tables import check_seen, describe, folders_in, identifier, is_folder, remove
from lakescore.tables.commits import committed, with_settings
from lakescore.tables.lock import alone

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_CHECK = "spark.databricks.delta.retentionDurationCheck.enabled"


@dataclass(frozen=True)
class Purged:
    """What was purged: the last line that the command prints."""

    target: str
    retain_hours: float
    files_before: int
    files_after: int


def purge_target(spark: "SparkSession", config: JobConfig, *, retain_hours: float) -> Purged:
    """Rewrite the files that hold deleted rows, and remove files of old versions.

    What was deleted just now is in files that were given up just now: they go with a second purge,
    `retain_hours` later.
    A version of the target that is older than `retain_hours` cannot be read any more. Readers and
    writers that are at work longer than that lose files under their hands: with 0, none may be.
    What a run that did not end has put aside for a former target of this name goes, too; in a
    checkpoint that the configuration names, which other targets may share, it is named in the log.

    Raises:
        BusyError: a run of this job is at work.
        ConfigError: the configuration names no tables, or the hours are no number of them.
        TableError: there is no target, or a run that did not end has rows put aside for it; or
            the checkpoint is where Spark Connect cannot remove it.
    """
    if not 0 <= retain_hours < math.inf:
        raise ConfigError(f"retain_hours is {retain_hours}; give a number of hours, 0 or more")
    _, target = job_tables(config)
    checkpoint = checkpoint_of(config)
    check_seen(spark, checkpoint)
    folder = folder_in(checkpoint, describe(spark, target))
    is_shared = config.target.checkpoint is not None
    with alone(spark, f"{checkpoint}/lock", wait=False):
        if is_folder(spark, f"{folder}/{STREAM_STAGES}"):
            raise TableError(
                f"{folder}: holds rows that a run has scored and not committed, since it did not "
                "end; run `lakescore score` to its end, or remove that folder if the job is to run "
                "no more; then purge again"
            )
        for other in folders_in(spark, checkpoint):
            for left in (f"{other}/{STREAM_STAGES}", *folders_in(spark, f"{other}/{RUNS}")):
                if not is_folder(spark, left):
                    continue
                if other == folder or not is_shared:  # whose run begins it anew
                    remove(spark, left)
                else:
                    logger.warning(
                        "%s: holds rows of a run that is at work or did not end, for another "
                        "target; if that one is gone, remove this folder",
                        left,
                    )
        before = describe(spark, target).files
        for statement in (
            f"REORG TABLE {identifier(target)} APPLY (PURGE)",
            f"VACUUM {identifier(target)} RETAIN {retain_hours:f} HOURS",
        ):
            committed(spark, target, partial(_execute, spark, statement))
        return Purged(target, retain_hours, before, describe(spark, target).files)


def _execute(spark: "SparkSession", statement: str) -> None:
    # VACUUM may go below a week: whoever gives the hours has thought of other readers.
    with with_settings(spark, {_CHECK: "false"}):
        spark.sql(statement).collect()
