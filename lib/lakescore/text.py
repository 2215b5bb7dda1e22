"""Which texts of an Arrow column can be scored, and the windows that cover a long one. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakescore.errors import TableError

IntArray = npt.NDArray[np.int64]


class ErrorCode(StrEnum):
    """Why a row has no scores: the values of the column `error.code`."""

    NULL_TEXT = "null_text"
    BLANK_TEXT = "blank_text"
    INVALID_UNICODE = "invalid_unicode"
    TOO_LONG = "too_long"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"
    TOKENIZER_ERROR = "tokenizer_error"
    WORKER_LOST = "worker_lost"


REMEDIES: dict[str, str] = {
    ErrorCode.NULL_TEXT: "nothing, or fill it at the source",
    ErrorCode.BLANK_TEXT: "nothing, or fill it at the source",
    ErrorCode.INVALID_UNICODE: "repair the encoding at the source",
    ErrorCode.TOO_LONG: "encoding.long_text: window",
    ErrorCode.OUT_OF_MEMORY: "a smaller encoding.max_length, a smaller model, a larger GPU",
    ErrorCode.NON_FINITE: "see that the checkpoint is whole, then retry",
    ErrorCode.TOKENIZER_ERROR: "report it with the tokenizer's name",
    ErrorCode.WORKER_LOST: "retry with more memory; else report it with the model's name",
}
"""What to do about rows of each code."""


@dataclass(frozen=True, slots=True)
class RowError:
    """One row's reason; `detail` never holds any of the row's text."""

    code: ErrorCode
    detail: str


@dataclass(frozen=True, slots=True)
class DistinctTexts:
    """The distinct values of one Arrow column of n rows, so that equal texts are scored once.

    `row_to_text` (n values) says where each row's text stands in `texts`; -1 is a null. Exactly
    the texts that cannot be scored have an entry in `errors`, and an empty string in `texts`.
    """

    texts: list[str]
    errors: dict[int, RowError]
    row_to_text: IntArray


_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)
NULL_TEXT = RowError(ErrorCode.NULL_TEXT, "the text is null")


def read_texts(column: pa.Array) -> DistinctTexts:
    """Return the distinct texts of a string or binary column.

    Spark does not check the bytes of its strings (a cast from binary can hold anything), so they
    are decoded here one by one, where a bad one costs its own row and not the batch.

    Raises:
        TableError: the column holds something else.
    """
    if not (pa.types.is_null(column.type) or any(is_kind(column.type) for is_kind in _TEXT_TYPES)):
        raise TableError(f"the column to score is {column.type}, not text; cast it to string")
    encoded = column.cast(pa.large_binary()).dictionary_encode()
    texts: list[str] = []
    errors: dict[int, RowError] = {}
    for position, raw in enumerate(encoded.dictionary.to_pylist()):
        text = ""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            detail = f"byte {error.start} of {len(raw)} is not UTF-8"
            errors[position] = RowError(ErrorCode.INVALID_UNICODE, detail)
        else:
            if not text or text.isspace():
                errors[position] = RowError(ErrorCode.BLANK_TEXT, "only white space")
                text = ""
        texts.append(text)
    row_to_text = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return DistinctTexts(texts, errors, row_to_text.astype(np.int64))


def encode_texts(texts: list[object]) -> pa.Array:
    """Return Python values as the binary column that `read_texts` takes.

    For texts that do not come out of Spark's Arrow: a lone surrogate becomes bytes that are not
    UTF-8 (and so the row's error), and None and NaN become null.

    Raises:
        TableError: a value is something else.
    """

    def encode(text: object) -> bytes | None:
        if isinstance(text, str):
            return text.encode("utf-8", "surrogatepass")
        if text is None or isinstance(text, bytes):
            return text
        if isinstance(text, float) and text != text:
            return None
        kind = type(text).__name__
        raise TableError(f"the column to score holds {kind}, not text; cast it to string")

    return pa.array([encode(text) for text in texts], pa.large_binary())


def chunks(texts: list[str], *, max_characters: int) -> Iterator[slice]:
    """Yield slices over `texts`, in order, of at most `max_characters` (or one longer text)."""
    begin, size = 0, 0
    for position, text in enumerate(texts):
        if position > begin and size + len(text) > max_characters:
            yield slice(begin, position)
            begin, size = position, 0
        size += len(text)
    if begin < len(texts):
        yield slice(begin, len(texts))


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over the tokens of several texts; five arrays of one value per window.

    `row` is the text; `begin` and `end` bound the window in that text's tokens; `keep_begin` and
    `keep_end` bound the tokens whose result is taken from this window. The kept ranges of a text
    follow one another without gap or overlap, from its first token to its last.
    """

    row: IntArray
    begin: IntArray
    end: IntArray
    keep_begin: IntArray
    keep_end: IntArray

    @property
    def lengths(self) -> IntArray:
        """Tokens in each window, without the model's special tokens."""
        return self.end - self.begin

    def without(self, rows: list[int]) -> "Windows":
        """Return the windows of all other texts."""
        kept = ~np.isin(self.row, rows)
        bounds = (self.begin, self.end, self.keep_begin, self.keep_end)
        return Windows(self.row[kept], *(values[kept] for values in bounds))


def windows(lengths: IntArray, *, size: int, stride: int) -> Windows:
    """Cover texts of `lengths` tokens with windows of at most `size` that overlap by `stride`.

    The last window of a long text is moved back to be full, for more context. A token that two
    windows share is kept from the one where it stands farther from the edge, which is to say that
    they divide their overlap in the middle. A text of no tokens gets one empty window.
    """
    if not 0 <= stride < size:
        raise ValueError(f"stride must be at least 0 and less than size={size}, not {stride}")
    lengths = np.asarray(lengths, np.int64)
    step = size - stride
    counts = 1 + np.maximum(0, -(-(lengths - size) // step))
    row = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    nth = np.arange(len(row)) - first[row]
    length = lengths[row]
    is_first = nth == 0
    is_last = nth == counts[row] - 1

    begin = np.where(is_last & ~is_first, length - size, nth * step)
    end = np.minimum(begin + size, length)
    keep_begin = begin.copy()
    keep_end = end.copy()
    left = np.flatnonzero(~is_last)
    middle = (begin[left + 1] + end[left] + 1) // 2
    keep_end[left] = middle
    keep_begin[left + 1] = middle
    return Windows(row, begin, end, keep_begin, keep_end)
