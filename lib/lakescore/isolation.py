"""Scoring in a child process: a text that kills it is found, and costs its own row alone."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa

from lakescore.errors import SetupError
from lakescore.scorer import ERROR_TYPE, Results, Scorer
from lakescore.text import ErrorCode

# A piece whose child died is divided into so many: with each death a model is loaded anew.
PIECES = 16
_PRELOADED = ("torch", "transformers.models.auto.modeling_auto")
# Deaths of a child with one row in hand, after which the row is to blame.
DEATHS = 2

_scorer: Scorer  # the child's own


class IsolatedScorer:
    """Scores as `Scorer` does, in a child process that may die of a text.

    A column goes to the child whole. When the child dies it is divided, until one row is left
    that kills a child twice: that row gets the error `worker_lost`.
    """

    def __init__(self, make: Callable[[], Scorer], kinds: dict[str, pa.DataType]) -> None:
        """Let the child make its scorer; `kinds` are the tasks' names and Arrow types."""
        self._make = make
        self._kinds = kinds
        self._pool: ProcessPoolExecutor | None = None

    def score(self, columns: Iterable[pa.Array]) -> Iterator[Results]:
        """Yield the results of each string or binary column, in order.

        Raises:
            SetupError: the child dies before it is given any row.
        """
        try:
            for column in columns:
                yield self._score(column) if len(column) else _joined([self._lost()], rows=0)
        finally:
            self._stop()

    def _score(self, column: pa.Array) -> Results:
        waiting = deque([(0, len(column), 0)])
        parts = []
        while waiting:
            begin, end, deaths = waiting.popleft()
            try:
                # A copy: a slice would be sent with all that it was cut from.
                piece = pa.concat_arrays([column[begin:end]])
                parts.append(self._child().submit(_score, piece).result())
            except BrokenProcessPool:
                self._stop()
                if end - begin > 1:
                    size = -(-(end - begin) // PIECES)
                    starts = range(begin, end, size)
                    pieces = [(start, min(start + size, end), 0) for start in starts]
                    waiting.extendleft(reversed(pieces))
                elif deaths + 1 < DEATHS:
                    waiting.appendleft((begin, end, deaths + 1))
                else:
                    parts.append(self._lost())
        return _joined(parts, len(column))

    def _child(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked from here, where threads and CUDA are at work, but from a server that has
            # only imported what takes seconds: each death costs no more than to load a model.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["lakescore.isolation", *_PRELOADED])
            self._pool = ProcessPoolExecutor(1, context, _begin)
            try:
                self._pool.submit(_load, self._make).result()
            except BrokenProcessPool as error:
                self._stop()
                raise SetupError(
                    "a Python worker died, and so does the process that is to find out of which "
                    "row, before it has any; see that a second copy of the models fits into memory"
                ) from error
        return self._pool

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _lost(self) -> Results:
        """Return what is told of one row."""
        told = (str(ErrorCode.WORKER_LOST), "the process that scored this text died of it")
        error = pa.StructArray.from_arrays(
            [pa.array([each], pa.string()) for each in told], fields=list(ERROR_TYPE)
        )
        columns = {name: pa.nulls(1, kind) for name, kind in self._kinds.items()}
        return Results(columns, pa.array([0], pa.int32()), error)


def _joined(parts: list[Results], rows: int) -> Results:
    """Put the parts of a column together, up to `rows` of it."""
    columns = {
        name: pa.concat_arrays([part.columns[name] for part in parts])[:rows]
        for name in parts[0].columns
    }
    n_tokens = pa.concat_arrays([part.n_tokens for part in parts])[:rows]
    return Results(columns, n_tokens, pa.concat_arrays([part.error for part in parts])[:rows])


def _begin() -> None:
    """Let the child end with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _load(make: Callable[[], Scorer]) -> None:
    """Make the child's scorer; not in `_begin`, whose exceptions do not reach the parent.

    A harmless text is scored too: models that die of it would do so of every row.
    """
    global _scorer
    _scorer = make()
    _score(pa.array(["a"]))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score(column: pa.Array) -> Results:
    [results] = _scorer.score([column])
    return results
