"""Labelled rows: what entity and sentiment sets hold, read from tables and checked."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakescore import tables
from lakescore.config import Name, Strict, TaskName
from lakescore.errors import DataError, TableError

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

Span = tuple[int, int, str]
"""(start, end, type): character offsets in a text, end exclusive, and the entity's type."""


UNLABELLED = -1
"""The label of a piece or text that only a teacher has an opinion on."""


class ColumnsConfig(Strict):
    """The columns to read: tokens and tags for entities, text and label for sentiment."""

    tokens: Name = "tokens"
    """The words of a text, `array<string>`."""
    tags: Name = "tags"
    """Their BIO tags, `array<string>`."""
    text: Name = "text"
    """The text."""
    label: Name = "label"
    """Its label, by name or by its place in `labels`."""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """One row of an entity set: `text == " ".join(tokens)`, one BIO tag for each token.

    `tags` is None in a row without labels.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...] | None

    @property
    def text(self) -> str:
        """The tokens, joined by single spaces."""
        return " ".join(self.tokens)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row of a sentiment set; `label` is its id, or `UNLABELLED` in a row without labels."""

    text: str
    label: int


def spans_of(tags: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[Span]:
    """Join BIO tags of successive words into spans.

    A span goes on while the type stays the same and no tag says B-; an I- with nothing before it
    starts one. This is how transformers' token-classification pipeline groups words, too.
    """
    spans: list[Span] = []
    open_type = ""
    for tag, start, end in zip(tags, starts, ends, strict=True):
        prefix, _, kind = tag.partition("-")
        if kind and kind == open_type and prefix != "B":
            spans[-1] = (spans[-1][0], end, kind)
        elif kind:
            spans.append((start, end, kind))
        open_type = kind
    return spans


def word_offsets(tokens: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where each token starts and ends in `" ".join(tokens)`."""
    starts, ends, at = [], [], 0
    for token in tokens:
        starts.append(at)
        at += len(token)
        ends.append(at)
        at += 1
    return starts, ends


def read_table(spark: "SparkSession", table: str) -> "DataFrame":
    """Read a Delta table by name or path, or else Parquet by its path.

    Raises:
        TableError: there is no such table.
    """
    from pyspark.errors import AnalysisException

    is_parquet = tables.is_path(table) and table.rstrip("/").endswith(".parquet")
    if not tables.is_path(table) or (not is_parquet and tables.exists(spark, table)):
        return tables.load(spark, table)
    try:
        return spark.read.parquet(tables.absolute(table))
    except AnalysisException as error:
        raise TableError(
            f"{table}: no Delta table and no Parquet file or folder there; check the path"
        ) from error


def check_columns(
    types: Mapping[str, str],
    task: TaskName,
    columns: ColumnsConfig,
    table: str,
) -> None:
    """Refuse a table that lacks a column that labelled rows of `task` need.

    `types` are Spark's names of the types of the columns that are there.

    Raises:
        DataError: a column is missing or has the wrong type.
    """
    needed = {columns.text: "string", columns.label: None}
    if task == "entities":
        needed = {columns.tokens: "array<string>", columns.tags: "array<string>"}
    for name, wanted in needed.items():
        if name not in types:
            raise DataError(
                f"{table}: no column {name!r}; there are {', '.join(types)}: name the right one"
            )
        if wanted is not None and types[name] != wanted:
            raise DataError(
                f"{table}: column {name} is {types[name]}, not {wanted}; name another or cast it"
            )


def read_tagged(frame: "pd.DataFrame", *, tokens: str, tags: str, table: str) -> list[TaggedText]:
    """Rows of an entity set.

    Raises:
        DataError: a row has another number of tags than of tokens, or none, or a tag is not BIO.
    """
    rows = []
    for number, (words, marks) in enumerate(zip(frame[tokens], frame[tags], strict=True)):
        if words is None or marks is None or len(words) != len(marks) or None in [*words, *marks]:
            raise DataError(
                f"{table}: row {number}: columns {tokens} and {tags} do not hold one tag for each "
                "token; repair or drop the row"
            )
        rows.append(TaggedText(tuple(words), tuple(marks)))
    # Wrong ones are counted and not named, here and below: the wrong column may hold text.
    wrong = {
        tag for row in rows for tag in row.tags or () if tag != "O" and tag[:2] not in ("B-", "I-")
    }
    if wrong:
        raise DataError(
            f"{table}: column {tags}: {len(wrong)} of its values are not BIO tags; write O, B-TYPE "
            "and I-TYPE, or name another column"
        )
    return rows


def read_labelled(
    frame: "pd.DataFrame", *, text: str, label: str, labels: Sequence[str], table: str
) -> list[LabelledText]:
    """Rows of a sentiment set; a label is one of `labels` or its index.

    Raises:
        DataError: a text is null or a label is not among `labels`.
    """
    number: dict[Hashable, int] = {name: index for index, name in enumerate(labels)}
    number |= {index: index for index in range(len(labels))}
    wrong = sum(not isinstance(each, Hashable) or each not in number for each in frame[label])
    if wrong:
        raise DataError(
            f"{table}: column {label}: {wrong} rows have none of the labels {', '.join(labels)} "
            "nor an index of one; set labels, or name another column"
        )
    if frame[text].isna().any():
        raise DataError(f"{table}: column {text}: has nulls; drop those rows")
    pairs = zip(frame[text], frame[label], strict=True)
    return [LabelledText(each, number[name]) for each, name in pairs]


def short_name(table: str) -> str:
    """A table's name for a metric: the last two parts of a path, without its suffix."""
    return "/".join(Path(table).with_suffix("").parts[-2:]) if "/" in table else table
