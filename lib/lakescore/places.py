"""Where a job's tables are, and the folder in which it remembers what it has done.

A checkpoint is laid out so; each target in it has a folder named by the first letters of its id:

    lock                                 held by the run at work, on a disk of one's own
    <target>/stream-<source>[-<version>] Spark's own checkpoint of a stream
    <target>/stage-stream/<batch>        what a stream has scored and not committed yet
    <target>/todo/<run>/rows, steps      what a snapshot, retry or rescore has to score
    <target>/todo/<run>/stage/<batch>    what it has scored and not committed yet
"""

import posixpath
import re

from lakescore.config import JobConfig
from lakescore.errors import ConfigError, TableError
from lakescore.tables import names

STREAM_STAGES = "stage-stream"
RUNS = "todo"


def job_tables(config: JobConfig) -> tuple[str, str]:
    """Return the job's source and target, having checked that it names all that it needs.

    Raises:
        ConfigError: a table, the key or the checkpoint is missing.
        TableError: a table's name is none, or is a path in the form of one.
    """
    at, to = config.source.table, config.target.table
    if at is None:
        raise ConfigError("'source.table' is missing; name the Delta table to score")
    for table in (at, to):
        # Else what is checked of paths (the lock, that none lies in another) would not be of this.
        if table is not None and (path := names.path_in(table)) is not None:
            raise TableError(f"{table}: is a path in the form of a name; write the path: {path}")
    if not config.source.key:
        raise ConfigError("'source.key' is missing; name the columns that identify a row")
    if to is not None and _is_same(at, to):
        raise ConfigError(f"'target.table' is {to}, the source; name another table")
    if to is None:
        raise ConfigError("'target.table' is missing; name the Delta table to write")
    if names.is_path(to) and _is_inside(to, at):
        raise ConfigError(
            f"'target.table' is {to}, in the source {at}, where VACUUM removes it; name a folder "
            "beside it"
        )
    if config.target.checkpoint is None and not names.is_path(to):
        raise ConfigError(
            f"'target.checkpoint' is missing; {to} is a name in the catalog: give a folder "
            "that lasts, such as /Volumes/catalog/schema/volume/checkpoint"
        )
    return at, to


def checkpoint_of(config: JobConfig) -> str:
    """Return where a job remembers what it read: for a path beside the target, if not given.

    Raises:
        ConfigError: the job lacks a table or a key, or its checkpoint is in one of its tables.
        TableError: the checkpoint holds a variable of Spark's SQL.
    """
    at, to = job_tables(config)
    if config.target.checkpoint is not None:
        names.quoted(config.target.checkpoint)  # as SQL will have it
    given = config.target.checkpoint or names.beside(to, "_checkpoint")
    for table in (at, to):
        if _is_inside(given, table):
            raise ConfigError(
                f"'target.checkpoint' is {given}, in the table {table}, where VACUUM removes it "
                "and Delta takes it for a part of the table; name a folder beside it, such as "
                f"{names.beside(to, '_checkpoint')}"
            )
    return names.absolute(given)


def _is_inside(folder: str, table: str) -> bool:
    """Tell a folder that is in a table's."""
    if not names.is_path(table):
        return False
    return f"{_spelled(folder)}/".startswith(_spelled(table).rstrip("/") + "/")


def _is_same(one: str, other: str) -> bool:
    """Tell the same table by name or path, also where a path is spelled otherwise."""
    if names.is_path(one) and names.is_path(other):
        return _spelled(one) == _spelled(other)
    return names.place(one) == names.place(other)


def _spelled(path: str) -> str:
    """Return what is the same for all spellings of a path: of file:/a and dbfs:/a it is /a."""
    bare = re.sub(r"^(file|dbfs):/+", "/", names.absolute(path))
    scheme = found[0] if (found := re.match(r"\w+:/", bare)) else ""
    return scheme + posixpath.normpath(bare[len(scheme) :])


def folder_in(checkpoint: str, target: names.Details) -> str:
    """Return the folder of a target in a checkpoint, which may be that of several targets."""
    return f"{checkpoint}/{target.id[:8]}"


def folder_of_run(run_id: str) -> str:
    """Return the folder, in that of a target, of what a run has to score and has scored."""
    return f"{RUNS}/{run_id}"
