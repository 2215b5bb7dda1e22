"""Token-budget batches: windows of like length together, so that padding costs little. Pure."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def pack(lengths: IntArray, *, max_tokens: int, max_rows: int) -> Iterator[IntArray]:
    """Yield row indices, longest first, so that rows * longest <= max_tokens.

    A row longer than max_tokens is yielded alone. Every index is yielded exactly once. The
    longest come first so that memory runs out, if it does, on the first batch and not the last.
    """
    if max_tokens < 1 or max_rows < 1:
        raise ValueError(f"max_tokens={max_tokens} and max_rows={max_rows} must be at least 1")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    begin = 0
    while begin < len(order):
        longest = max(int(lengths[order[begin]]), 1)
        rows = min(max(max_tokens // longest, 1), max_rows)
        yield order[begin : begin + rows]
        begin += rows
