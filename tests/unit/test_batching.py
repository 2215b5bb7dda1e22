import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakescore.batching import bucket, pack


def test_the_longest_come_first_within_the_budget() -> None:
    batches = [batch.tolist() for batch in pack(np.array([2, 9, 3, 3]), max_tokens=9, max_rows=8)]
    assert batches == [[1], [2, 3, 0]]


@given(st.lists(st.integers(0, 600)), st.integers(1, 2048), st.integers(1, 50), st.booleans())
def test_every_row_is_in_one_batch_within_the_budget_or_alone(
    lengths: list[int], max_tokens: int, max_rows: int, few_shapes: bool
) -> None:
    limits = {"max_tokens": max_tokens, "max_rows": max_rows, "few_shapes": few_shapes}
    batches = list(pack(np.array(lengths, np.int64), **limits))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens


@pytest.mark.parametrize(
    "limits", [{"max_tokens": 0, "max_rows": 1}, {"max_tokens": 1, "max_rows": 0}]
)
def test_a_budget_of_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        list(pack(np.array([1]), **limits))


@given(st.integers(0, 5000))
def test_a_bucket_is_hardly_longer_than_what_is_in_it(length: int) -> None:
    found = int(bucket(np.array([length]))[0])
    assert length <= found <= length + (1 if length <= 32 else 3 if length <= 128 else 7)
    assert bucket(np.array([found])) == [found]


def test_texts_of_all_lengths_make_few_shapes() -> None:
    random = np.random.default_rng(0)
    shapes = set()
    for _ in range(200):
        widths = bucket(random.integers(3, 513, size=random.integers(1, 500)))
        for batch in pack(widths, max_tokens=1024, max_rows=4096, few_shapes=True):
            shapes.add((len(batch), int(widths[batch].max())))
    # One shape for each of 88 buckets, and powers of two below it where rows ran out.
    assert len({width for _, width in shapes}) <= 88
    assert all(rows == max(1024 // width, 1) or rows.bit_count() == 1 for rows, width in shapes)
