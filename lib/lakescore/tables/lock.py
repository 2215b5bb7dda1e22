"""One process at a time, on this machine's own disk: there Delta and Spark cannot see to it.

A commit is a rename that must fail where the file is there already. Object stores and HDFS know
such a rename, or Delta's log store for them does; Hadoop's local file system looks first and then
replaces, so that two processes at the same moment would both believe to have committed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lakescore import failpoints
from lakescore.errors import BusyError, TableError
from lakescore.locks import locked
from lakescore.tables.folders import on_this_machine
from lakescore.tables.names import absolute, is_path

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def alone(spark: "SparkSession", place: str, *, wait: bool) -> Iterator[bool]:
    """Be the only one at work on a folder of this machine, which is made if it is not there.

    Folders elsewhere and tables of a catalog are not locked, of which what is yielded tells: what
    holds them commits atomically.

    Args:
        spark: says where a path leads.
        place: a folder, or a table by name or path.
        wait: whether to wait for another process that is at work on it.

    Raises:
        BusyError: another one is, and `wait` is False.
        TableError: the folder cannot be made or opened.
    """
    folder = on_this_machine(spark, absolute(place)) if is_path(place) else None
    is_free = failpoints.UNLOCKED_COMMITS if wait else failpoints.UNLOCKED
    if folder is None or is_free:
        yield False
        return
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(folder, wait=wait))
        except BlockingIOError:
            raise BusyError(
                f"{place}: another run of this job is at work; what comes after it began, the "
                "next run scores; if it is of another job, give each its own target.checkpoint"
            ) from None
        except OSError as error:
            raise TableError(
                f"{place}: cannot be made ({error.strerror}); name a folder that can be written"
            ) from error
        yield True
