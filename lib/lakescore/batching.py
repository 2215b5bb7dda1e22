"""Token-budget batches: windows of like length together, so that padding costs little. Pure."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def bucket(lengths: IntArray) -> IntArray:
    """Round lengths up to one of a few: by at most 1 up to 32 tokens, 3 up to 128, 7 beyond.

    Together with pack(…, few_shapes=True) it lets a model see few different shapes of batch, for
    each of which oneDNN compiles kernels and keeps them.
    """
    lengths = np.asarray(lengths, np.int64)
    step = np.where(lengths <= 32, 2, np.where(lengths <= 128, 4, 8))
    rounded: IntArray = -(-lengths // step) * step
    return rounded


def pack(
    lengths: IntArray, *, max_tokens: int, max_rows: int, few_shapes: bool = False
) -> Iterator[IntArray]:
    """Yield row indices, longest first, so that rows * longest <= max_tokens.

    A row longer than max_tokens is yielded alone. Every index is yielded exactly once. The
    longest come first so that memory runs out, if it does, on the first batch and not the last.
    With `few_shapes` the rows left for the last batch are divided into powers of two: the number
    of rows then follows from the longest, or is one of these.
    """
    if max_tokens < 1 or max_rows < 1:
        raise ValueError(f"max_tokens={max_tokens} and max_rows={max_rows} must be at least 1")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    begin = 0
    while begin < len(order):
        longest = max(int(lengths[order[begin]]), 1)
        rows = min(max(max_tokens // longest, 1), max_rows)
        left = len(order) - begin
        if few_shapes and left < rows:
            rows = 1 << (left.bit_length() - 1)
        yield order[begin : begin + rows]
        begin += rows
