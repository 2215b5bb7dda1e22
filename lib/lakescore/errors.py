"""Every exception that lakescore raises on purpose; each message names the thing, value and remedy.

    LakescoreError
    ├── ConfigError     a job's configuration is wrong; raised before anything runs
    ├── ModelError      a model cannot be resolved, is unsafe, or does not fit its task
    ├── TableError      a source or target table is missing or has the wrong shape
    │   └── RefusedRowsError    rows have null or double keys, or break a constraint
    ├── BudgetError     more rows failed than limits.max_error_fraction allows
    ├── BusyError       another run of the same job is at work, or was faster
    ├── DataError       labelled data for fine-tuning or evaluation is malformed
    ├── WorkerError     scoring itself failed in a Python worker
    └── SetupError      something around lakescore is missing: Java, Spark, Delta, a session

A row that cannot be scored is never an exception: it is a value, `error.code`, in the target.
No message ever contains the text of a row.
"""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LakescoreError(Exception):
    """The root: catch it to catch whatever lakescore raises on purpose."""


class ConfigError(LakescoreError):
    """Raised while a configuration is read, before any table or model is touched."""


class ModelError(LakescoreError):
    """Raised on the driver when a model reference is resolved, checked or loaded."""


class TableError(LakescoreError):
    """Raised when a source or target table does not fit the job, or cannot be read or written."""


class RefusedRowsError(TableError):
    """Raised where rows cannot be written: null or double keys, keys of others, a constraint."""


class BudgetError(LakescoreError):
    """Raised before a micro-batch is committed in which too many rows failed."""


class BusyError(LakescoreError):
    """Raised where another run of the job is at work, or was faster; this one goes no further."""


class DataError(LakescoreError):
    """Raised by evaluation and fine-tuning when labelled rows are not what they should be."""


class WorkerError(LakescoreError):
    """Raised in a Python worker where scoring itself fails; says what was raised and where."""


class SetupError(LakescoreError):
    """Raised when the machine or the session lacks something; the message names the remedy."""


@contextmanager
def without_words() -> Iterator[None]:
    """Say of an error only its kind and its place: its words, which Spark logs, may quote a text.

    Raises:
        WorkerError: in place of what is not lakescore's own.
    """
    try:
        yield
    except LakescoreError:
        raise
    except Exception as error:  # of any library that has a text in hand
        places = traceback.extract_tb(error.__traceback__)[-3:]
        at = " < ".join(f"{each.name} ({each.filename}:{each.lineno})" for each in reversed(places))
        raise WorkerError(
            f"{type(error).__name__} in {at}; its words are left out, as they may quote a text"
        ) from None


def root_cause(error: Exception) -> str:
    """Say in one line what was raised; of an error of Java's, its deepest cause.

    Errors of analysis are said in full; those of a run, which may quote a row, by their name alone.
    """
    cause: Any = getattr(error, "java_exception", None)
    while cause is not None and cause.getCause() is not None:
        cause = cause.getCause()
    said = f"{type(error).__name__}: {error}" if cause is None else str(cause.toString())
    line = (said.strip().splitlines() or [""])[0][:500]
    named = re.match(r"([\w.$]+): \[[A-Z0-9_.]+\]", line)
    return named[0] if named and not named[1].endswith("AnalysisException") else line


def was_interrupted(error: BaseException) -> bool:
    """Tell what was raised because of Ctrl-C: Java may have been in the middle of a call."""
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, KeyboardInterrupt):
            return True
        before = before.__context__
    return False


def in_a_line(error: Exception) -> str:
    """Return what to say of an error that is not lakescore's own, in a line."""
    # A worker's error is a line somewhere in what Spark says of it. Of lakescore's own the message
    # is safe to show; of any other, the kind: its message may quote a row's text.
    if ours := re.search(r"lakescore\.errors\.(\w+: .+)", str(error)):
        return ours[1]
    _, is_python, traceback = str(error).partition("Traceback (most recent call last)")
    raised = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception))\b", traceback, re.MULTILINE)
    if is_python and raised:
        return f"{type(error).__name__}: a Python worker raised {raised[-1]}"
    return root_cause(error)
