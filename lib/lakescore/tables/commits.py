"""Commits of which each happens once: with a transaction's number, again after a conflict."""

import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lakescore.errors import BusyError, RefusedRowsError, SetupError, TableError, root_cause
from lakescore.tables.lock import alone
from lakescore.tables.names import history, identifier, literal, quoted
from lakescore.tables.source import DENIED

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_DELTA = "spark.databricks.delta."
# Two writers that meet: the slower one reads again and tries again, after a pause that grows.
_ATTEMPTS = 40
_LONGEST_PAUSE = 8.0
_LOSING = ("spark.sql.files.ignoreMissingFiles", "spark.sql.files.ignoreCorruptFiles")
_UNWRITABLE = (*DENIED, "Mkdirs failed", "Read-only file system")
# Raised inside a commit where a new row's key is in the target already. Where none is when they are
# counted afterwards, another writer's commit came between: a conflict, and tried again.
PRESENT = "lakescore: a new key is in the target already"
_CONFLICTS = (
    PRESENT,
    "DELTA_CONCURRENT_APPEND",
    "DELTA_CONCURRENT_DELETE_READ",
    "DELTA_CONCURRENT_DELETE_DELETE",
    "DELTA_CONCURRENT_WRITE",
    "DELTA_METADATA_CHANGED",
    "DELTA_PROTOCOL_CHANGED",
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit: its transaction (the same one is never done twice), and what history says."""

    app: str
    number: int
    note: Mapping[str, object] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """What a session says of it, for Delta."""
        note = {"app": self.app, "number": self.number, **self.note}
        return {
            _DELTA + "write.txnAppId": self.app,
            _DELTA + "write.txnVersion": str(self.number),
            _DELTA + "commitInfo.userMetadata": json.dumps(note),
        }


def own_transaction(of: str) -> dict[str, str]:
    """Return options of a writer for a commit that is no micro-batch's.

    Without an id of its own it would take the one that another thread has put into the session's
    settings for its micro-batch.
    """
    return {"txnAppId": f"lakescore-{of}-{uuid.uuid4()}", "txnVersion": "0"}


def find_commit(
    spark: "SparkSession", table: str, commit: Commit, *, since: int
) -> dict[str, Any] | None:
    """Return the note of a commit that was made after version `since`; None if it was not."""
    commits = history(spark, table)
    for row in commits.where(commits.version > since).select("userMetadata").collect():
        said = note_of(row[0])
        if (said.get("app"), said.get("number")) == (commit.app, commit.number):
            return said
    return None


def app_of(writer: str) -> str:
    """Return the application of a streaming query or of a run: what numbers its commits."""
    return f"lakescore-{writer}"


def note_of(metadata: str | None) -> dict[str, Any]:
    """Return the note of a commit; an empty one where another writer has left its own words."""
    try:
        said = json.loads(metadata or "{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


# Threads of one session have one set of settings: each waits until another has put them back.
_SETTINGS: "WeakKeyDictionary[SparkSession, Any]" = WeakKeyDictionary()


@contextmanager
def with_settings(spark: "SparkSession", settings: Mapping[str, str]) -> Iterator[None]:
    """Give Spark some settings for a while: a MERGE takes its transaction from here only."""
    with _SETTINGS.setdefault(spark, RLock()):
        before = {name: spark.conf.get(name, None) for name in settings}
        try:
            for name, value in settings.items():
                spark.conf.set(name, value)
            yield
        finally:
            for name, old in before.items():
                if old is None:
                    spark.conf.unset(name)
                else:
                    spark.conf.set(name, old)


def check_settings(spark: "SparkSession") -> None:
    """Check that a session takes the settings by which commits are numbered, and reads all rows.

    Raises:
        SetupError: it does not.
    """
    try:
        with with_settings(spark, Commit(app="lakescore", number=0).settings):
            pass
    except Exception as error:  # Connect's own
        if "CONFIG_NOT_AVAILABLE" not in str(error):
            raise
        raise SetupError(
            f"this Spark takes no setting {_DELTA}write.txnAppId, as serverless compute, and so "
            "cannot tell a commit that was made from one that was not; run the job on a cluster in "
            "standard or dedicated access mode"
        ) from error
    for name in _LOSING:
        if str(spark.conf.get(name, "false")).lower() == "true":
            raise SetupError(
                f"{name} is true in this session, so that rows whose file is gone or damaged would "
                "be lost without a word; set it to false"
            )


def set_property(
    spark: "SparkSession", table: str, name: str, value: str, note: Mapping[str, object]
) -> None:
    """Set a table's property, which is a commit of its own; `note` is what history says of it."""
    with with_settings(spark, {_DELTA + "commitInfo.userMetadata": json.dumps(note)}):
        spark.sql(
            f"ALTER TABLE {identifier(table)} SET TBLPROPERTIES ({quoted(name)} = {literal(value)})"
        )


def unset_property(spark: "SparkSession", table: str, name: str) -> None:
    """Remove a table's property, which is a commit of its own."""
    with with_settings(spark, {_DELTA + "commitInfo.userMetadata": "{}"}):
        spark.sql(unset_statement(table, name))


def unset_statement(table: str, name: str) -> str:
    """Return the SQL that removes a table's property, if it has it."""
    return f"ALTER TABLE {identifier(table)} UNSET TBLPROPERTIES IF EXISTS ({quoted(name)})"


def committed(spark: "SparkSession", table: str, action: Callable[[], None]) -> None:
    """Do what commits to a table, again where another writer came between.

    Raises:
        BusyError: another run of the same job did this at the same time.
        TableError: the table cannot be written, or others were faster every time.
    """

    def once() -> None:
        with alone(spark, table, wait=True):
            action()

    retried(table, once)


def retried(
    table: str,
    action: Callable[[], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[float, float], float] = random.uniform,
) -> None:
    """Do what may conflict with other writers, up to forty times; the pauses grow, and are drawn.

    Raises:
        BusyError: another run of the same job did this at the same time.
        TableError: the table cannot be written, or others were faster every time.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except TableError:
            raise
        except Exception as error:  # Spark's, Delta's, and Java's own
            said = str(error)
            if "DELTA_CONCURRENT_TRANSACTION" in said:
                raise BusyError(
                    f"{table}: another run of this job wrote the same micro-batch at this moment; "
                    "it has the rows"
                ) from error
            if not any(sign in said for sign in _CONFLICTS):
                if (known := write_error(table, error)) is not None:
                    raise known from error
                raise
            last = error
        sleep(draw(0, min(_LONGEST_PAUSE, 0.2 * 2**attempt)))
    raise TableError(
        f"{table}: other writers were faster in {_ATTEMPTS} attempts; run the job again, or let "
        "fewer of them write at once"
    ) from last


def write_error(place: str, error: Exception) -> TableError | None:
    """Say why a place cannot be written, in words that quote no row; None if it is not that."""
    said = str(error)
    if "DELTA_INVALID_CHARACTERS_IN_COLUMN_NAMES" in said:
        return TableError(
            f"{place}: the name of one of the source's columns holds a space or one of ,;{{}}()=, "
            "which the target cannot have; leave it out by source.columns, or rename it"
        )
    if "DELTA_FEATURES_REQUIRE_MANUAL_ENABLEMENT" in said:
        return TableError(
            f"{place}: has not the table feature that a column of the job's type needs, as "
            "timestamp_ntz; turn it on (ALTER TABLE … SET TBLPROPERTIES "
            "('delta.feature.timestampNtz' = 'supported')), leave that column out by "
            "source.columns, or name another target.table"
        )
    if "No space left on device" in said:
        return TableError(
            f"{place}: the disk is full; free some room and run the job again (there, or where "
            "spark.local.dir has Spark's own files)"
        )
    if missing := re.search(r"DELTA_MISSING_NOT_NULL_COLUMN_VALUE\] Column (\S+)", said):
        column = missing[1].rstrip(",")
        return TableError(
            f"{place}: its column {column} is NOT NULL, and the job has none of that name; ALTER "
            f"TABLE … ALTER COLUMN {column} DROP NOT NULL, or give it a default"
        )
    if "CHECK constraint" in said or "DELTA_NOT_NULL_CONSTRAINT" in said:
        return RefusedRowsError(
            f"{place}: a constraint of it refuses a row; drop that constraint, or take such rows "
            "out of the source"
        )
    if any(sign in said for sign in _UNWRITABLE):
        return TableError(
            f"{place}: cannot be written ({root_cause(error)}); name a folder or a table that can"
        )
    return None
