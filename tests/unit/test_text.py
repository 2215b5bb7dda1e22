import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakescore.errors import TableError
from lakescore.text import (
    DistinctTexts,
    ErrorCode,
    RowError,
    chunks,
    encode_texts,
    read_texts,
    windows,
)


def test_equal_texts_are_read_once_and_bad_ones_have_their_reason() -> None:
    column = pa.array([b"one", None, b"two", b"one", b" \n", b"ab\xff", b""])
    read = read_texts(column)
    assert read.texts == ["one", "two", "", "", ""]
    assert read.row_to_text.tolist() == [0, -1, 1, 0, 2, 3, 4]
    assert read.errors == {
        2: RowError(ErrorCode.BLANK_TEXT, "only white space"),
        3: RowError(ErrorCode.INVALID_UNICODE, "byte 2 of 3 is not UTF-8"),
        4: RowError(ErrorCode.BLANK_TEXT, "only white space"),
    }


def test_string_and_binary_columns_read_alike() -> None:
    texts = ["añ", "😀", "a"]
    for kind in (pa.string(), pa.large_string(), pa.binary()):
        column = pa.array([text.encode() for text in texts], pa.binary()).cast(kind)
        assert read_texts(column).texts == texts


def test_a_column_of_something_else_is_refused() -> None:
    with pytest.raises(TableError, match="score is int64, not text; cast it to string"):
        read_texts(pa.array([1, 2]))
    with pytest.raises(TableError, match="score holds int, not text; cast it to string"):
        encode_texts(["a", 7])


def test_python_values_that_are_no_text_become_null_or_their_rows_error() -> None:
    read: DistinctTexts = read_texts(encode_texts(["a", None, float("nan"), "\ud83d", b"b"]))
    assert read.texts == ["a", "", "b"]
    assert read.row_to_text.tolist() == [0, -1, -1, 1, 2]
    assert [error.code for error in read.errors.values()] == [ErrorCode.INVALID_UNICODE]


@given(st.lists(st.text(st.characters(codec=None)) | st.none()))
def test_every_value_is_a_text_an_error_or_null(values: list[str | None]) -> None:
    read = read_texts(encode_texts(list(values)))
    assert len(read.row_to_text) == len(values)
    for value, text in zip(values, read.row_to_text.tolist(), strict=True):
        if value is None:
            assert text == -1
        elif text in read.errors:
            is_unicode = not any("\ud800" <= char <= "\udfff" for char in value)
            assert not value.strip() or not is_unicode
        else:
            assert read.texts[text] == value


@given(st.lists(st.text(max_size=20)), st.integers(1, 30))
def test_chunks_cover_all_texts_in_order_within_the_limit(texts: list[str], limit: int) -> None:
    pieces = [texts[piece] for piece in chunks(texts, max_characters=limit)]
    assert [text for piece in pieces for text in piece] == texts
    for piece in pieces:
        assert len(piece) == 1 or sum(map(len, piece)) <= limit


def test_windows_of_a_long_text_divide_their_overlap_in_the_middle() -> None:
    found = windows(np.array([3, 25]), size=10, stride=4)
    assert list(zip(found.row, found.begin, found.end, strict=True)) == [
        (0, 0, 3),
        (1, 0, 10),
        (1, 6, 16),
        (1, 12, 22),
        (1, 15, 25),
    ]
    kept = list(zip(found.keep_begin, found.keep_end, strict=True))
    assert kept == [(0, 3), (0, 8), (8, 14), (14, 19), (19, 25)]


@given(st.lists(st.integers(0, 400), max_size=20), st.integers(1, 50), st.data())
def test_every_token_is_kept_once_where_it_stands_farthest_from_an_edge(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(0, size // 2))
    found = windows(np.array(lengths, np.int64), size=size, stride=stride)
    assert (found.lengths <= size).all()
    for row, length in enumerate(lengths):
        mine = np.flatnonzero(found.row == row)
        spans = list(zip(found.begin[mine].tolist(), found.end[mine].tolist(), strict=True))
        kept = zip(found.keep_begin[mine].tolist(), found.keep_end[mine].tolist(), strict=True)
        chosen = [nth for nth, (first, last) in enumerate(kept) for _ in range(first, last)]
        assert len(chosen) == length
        for token, nth in enumerate(chosen):
            margins = {n: margin(token, *span, length) for n, span in enumerate(spans)}
            assert (
                margins[nth] >= max(margins.values()) - 1
            )  # a token in the middle may go either way


def margin(token: int, begin: int, end: int, length: int) -> float:
    """How far a token is from the nearer edge; where the text ends, nothing is missing."""
    if not begin <= token < end:
        return -np.inf
    left = token - begin if begin > 0 else np.inf
    return min(left, end - 1 - token if end < length else np.inf)


def test_windows_without_some_texts_are_those_of_the_others() -> None:
    found = windows(np.array([5, 25, 7]), size=10, stride=0).without([1])
    assert found.row.tolist() == [0, 2]
    assert found.end.tolist() == [5, 7]


@pytest.mark.parametrize("stride", [-1, 10])
def test_a_stride_that_leaves_no_progress_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="stride must be at least 0 and less than size=10"):
        windows(np.array([5]), size=10, stride=stride)
