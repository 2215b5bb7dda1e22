"""Columns of text in, columns of results out: all that a worker does, and nothing of Spark."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakescore.encoder import UNLIMITED, Encoder
from lakescore.tasks import Task
from lakescore.text import (
    NULL_TEXT,
    DistinctTexts,
    ErrorCode,
    RowError,
    chunks,
    read_texts,
    windows,
)
from lakescore.tokens import Tokenizer, Tokens

Item = TypeVar("Item")
ERROR_TYPE = pa.struct([("code", pa.string()), ("detail", pa.string())])

# A chunk of texts is tokenised while the chunk before it is in the model; it is also the pool
# that is sorted by length. Large enough for little padding, small enough to begin soon.
PASSES_PER_CHUNK = 64
TOKENS_PER_CHUNK = 2**20  # at most: a GPU's passes are large
CHARACTERS_PER_TOKEN = 4
WINDOW_WITHOUT_LIMIT = 512  # where neither the tokenizer, the model nor the job names one


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task with the model and tokenizer that serve it in this process."""

    task: Task
    encoder: Encoder
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Limits:
    """How long texts are cut: see `EncodingConfig`."""

    max_length: int | None
    stride: int
    reject_long: bool


@dataclass(frozen=True, slots=True)
class Results:
    """One Arrow batch's results; every array has one value per row, in the rows' order.

    `columns` are the tasks' results by name, null where `error` (code, detail) is not.
    `n_tokens` counts the first task's tokens without special ones, and is 0 for a failed text
    that never became tokens.
    """

    columns: dict[str, pa.Array]
    n_tokens: pa.Array
    error: pa.Array


@dataclass(frozen=True, slots=True)
class _Part:
    """What became of one chunk of distinct texts."""

    columns: list[pa.Array]
    n_tokens: npt.NDArray[np.int64]
    errors: dict[int, RowError]


class Scorer:
    """Scores texts with one or more tasks in one pass.

    Tasks that share a `Tokenizer` object share the tokenisation.
    """

    def __init__(self, tasks: Sequence[LoadedTask], limits: Limits) -> None:
        self.tasks = list(tasks)
        self.limits = limits
        budget = max(loaded.encoder.token_budget for loaded in self.tasks)
        tokens = min(budget * PASSES_PER_CHUNK, TOKENS_PER_CHUNK)
        self._chunk_characters = tokens * CHARACTERS_PER_TOKEN

    def score(self, columns: Iterable[pa.Array]) -> Iterator[Results]:
        """Yield the results of each string or binary column, in order.

        A thread tokenises one chunk ahead of the models, across the borders of columns: the
        column after the one being scored may already have been read.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as ahead:
            parts: list[_Part] = []
            for distinct, is_last, texts, tokenized in _one_ahead(self._submit(columns, ahead)):
                if tokenized is not None:
                    parts.append(self._score_chunk(texts, tokenized.result()))
                if is_last:
                    yield self._assemble(distinct, parts)
                    parts = []

    def _submit(
        self, columns: Iterable[pa.Array], ahead: ThreadPoolExecutor
    ) -> Iterator[tuple[DistinctTexts, bool, list[str], "Future[list[Tokens]] | None"]]:
        for column in columns:
            distinct = read_texts(column)
            pieces = list(chunks(distinct.texts, max_characters=self._chunk_characters))
            for nth, piece in enumerate(pieces, start=1):
                texts = distinct.texts[piece]
                yield distinct, nth == len(pieces), texts, ahead.submit(self._tokenize, texts)
            if not pieces:
                yield distinct, True, [], None

    def _tokenize(self, texts: list[str]) -> list[Tokens]:
        """Return each task's tokens; one object where tasks share a tokenizer."""
        known: dict[int, Tokens] = {}
        for loaded in self.tasks:
            if id(loaded.tokenizer) not in known:
                known[id(loaded.tokenizer)] = loaded.tokenizer.tokenize(texts)
        return [known[id(loaded.tokenizer)] for loaded in self.tasks]

    def _score_chunk(self, texts: list[str], tokens_of_task: list[Tokens]) -> _Part:
        errors: dict[int, RowError] = {}
        columns = []
        for loaded, tokens in zip(self.tasks, tokens_of_task, strict=True):
            for row, kind in tokens.failed.items():
                detail = f"{loaded.task.name}: the tokenizer raised {kind}"
                errors.setdefault(row, RowError(ErrorCode.TOKENIZER_ERROR, detail))
            size = self._window_size(loaded)
            lengths = tokens.lengths
            for row in np.flatnonzero(lengths == 0).tolist():
                detail = "the tokenizer finds no token in it"
                errors.setdefault(row, RowError(ErrorCode.BLANK_TEXT, detail))
            if self.limits.reject_long:
                for row in np.flatnonzero(lengths > size).tolist():
                    detail = f"{lengths[row]} tokens, the limit is {size}; long_text: window"
                    errors.setdefault(row, RowError(ErrorCode.TOO_LONG, detail))
            columns.append(self._score_task(loaded, tokens, texts, size, errors))
        return _Part(columns, tokens_of_task[0].lengths, errors)

    def _score_task(
        self,
        loaded: LoadedTask,
        tokens: Tokens,
        texts: list[str],
        size: int,
        errors: dict[int, RowError],
    ) -> pa.Array:
        covering = windows(tokens.lengths, size=size, stride=min(self.limits.stride, size // 2))
        covering = covering.without(list(errors))
        scores = loaded.encoder.score(loaded.tokenizer, tokens, covering, top=loaded.task.top)
        for row, error in scores.failed.items():
            errors[row] = RowError(error.code, f"{loaded.task.name}: {error.detail}")
        return loaded.task.decode(scores, tokens, covering, texts)

    def _window_size(self, loaded: LoadedTask) -> int:
        limits = (loaded.tokenizer.max_length, loaded.encoder.max_length, self.limits.max_length)
        size = min(limit for limit in limits if limit)
        if size >= UNLIMITED:
            size = WINDOW_WITHOUT_LIMIT
        return size - loaded.tokenizer.special_count

    def _assemble(self, distinct: DistinctTexts, parts: list[_Part]) -> Results:
        """Join the chunks of one column and give each row the result of its text."""
        errors = {-1: NULL_TEXT}
        begin = 0
        for part in parts:
            errors.update({begin + row: error for row, error in part.errors.items()})
            begin += len(part.n_tokens)
        errors.update(distinct.errors)
        if begin != len(distinct.texts):
            raise AssertionError(f"{begin} results for {len(distinct.texts)} texts")

        # A null is text -1: it takes from the end, where there is one value more than texts.
        rows = pa.array(np.where(distinct.row_to_text < 0, begin, distinct.row_to_text))
        is_failed = np.zeros(begin + 1, bool)
        code = np.full(begin + 1, None, object)
        detail = np.full(begin + 1, None, object)
        for text, error in errors.items():
            is_failed[text], code[text], detail[text] = True, str(error.code), error.detail
        failed = pa.array(is_failed)

        columns = {}
        for nth, loaded in enumerate(self.tasks):
            kind = loaded.task.arrow_type
            every = pa.concat_arrays([*(part.columns[nth] for part in parts), pa.nulls(1, kind)])
            columns[loaded.task.name] = _null_where(failed, every, kind).take(rows)
        n_tokens = np.concatenate([*(part.n_tokens for part in parts), [0]])
        error = pa.StructArray.from_arrays(
            [pa.array(code, pa.string()), pa.array(detail, pa.string())],
            fields=list(ERROR_TYPE),
            mask=pc.invert(failed),
        )
        return Results(columns, pa.array(n_tokens, pa.int32()).take(rows), error.take(rows))


def _null_where(failed: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    kept = pa.array(np.arange(len(values)), mask=np.asarray(failed))
    return values.take(kept).cast(kind)


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`, having asked for the next one before each is handed out."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
