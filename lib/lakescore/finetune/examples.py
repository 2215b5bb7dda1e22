"""Labelled rows as training examples: label assignment, augmentation, crops, token-budget batches.

Everything here is plain data and a seeded generator: no torch, no Spark.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lakescore.batching import pack
from lakescore.errors import DataError
from lakescore.labelled import UNLABELLED, LabelledText, TaggedText, spans_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IntArray = npt.NDArray[np.int64]

IGNORED = -100
"""The label of special tokens and padding: no part of the loss."""

_NO_SPACE_BEFORE = frozenset(
    [*",.;:!?%)]}", "...", "'s", "'m", "'re", "'ve", "'ll", "'d", "n't", "na"]
)
_NO_SPACE_AFTER = frozenset("([{#@$")


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: ids with special tokens; a label for each piece, or one for the whole."""

    ids: IntArray
    labels: IntArray


@dataclass(frozen=True, slots=True)
class Ends:
    """The ids that the tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Ends":
        """Read them off an encoding of a text with one piece."""
        encoding = tokenizer.encode("a")
        at = encoding.special_tokens_mask.index(0)
        return cls(tuple(encoding.ids[:at]), tuple(encoding.ids[at + 1 :]))


def join_tokens(tokens: Sequence[str], *, natural: bool) -> tuple[str, list[int]]:
    """The text of `tokens` and where each starts; `natural` spacing as a person would type it.

    Labelled sets write `do n't stop , he said`; the texts to score say `don't stop, he said`.
    """
    starts, parts, at = [], [], 0
    for index, token in enumerate(tokens):
        glued = natural and (
            token.lower() in _NO_SPACE_BEFORE or (index and tokens[index - 1] in _NO_SPACE_AFTER)
        )
        if index and not glued:
            parts.append(" ")
            at += 1
        starts.append(at)
        parts.append(token)
        at += len(token)
    return "".join(parts), starts


def piece_tags(tags: Sequence[str], starts: Sequence[int], pieces: IntArray) -> list[str]:
    """A tag for each piece from the token that it starts in: the first as tagged, the rest I-.

    `pieces` are the start offsets of the pieces, ascending; `starts` those of the tokens.
    """
    token_of = np.searchsorted(np.asarray(starts), pieces, side="right") - 1
    is_first = np.append(True, token_of[1:] != token_of[:-1])[: len(token_of)]
    return [
        tag if first or tag == "O" else "I" + tag[1:]
        for tag, first in zip((tags[i] for i in token_of), is_first, strict=True)
    ]


def first_characters(text: str, offsets: Sequence[Sequence[int]]) -> IntArray:
    """Where each piece begins, without the space before it that some tokenizers count to it."""
    spaces = [len(text[start:end]) - len(text[start:end].lstrip()) for start, end in offsets]
    return np.array([start for start, _ in offsets], np.int64) + np.array(spaces, np.int64)


def mentions(rows: Sequence[TaggedText]) -> dict[str, list[tuple[str, ...]]]:
    """Every mention in the rows, as tokens, by its type; as often as it is there."""
    found: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for row in rows:
        for start, end, kind in _token_spans(row.tags or ()):
            found[kind].append(row.tokens[start:end])
    return dict(found)


def swap_mentions(
    row: TaggedText,
    pool: Mapping[str, Sequence[tuple[str, ...]]],
    rng: np.random.Generator,
    share: float,
) -> TaggedText:
    """Replace about `share` of the row's mentions by others of their type from `pool`."""
    if row.tags is None:
        return row
    tokens: list[str] = []
    tags: list[str] = []
    at = 0
    for start, end, kind in _token_spans(row.tags):
        tokens += row.tokens[at:start]
        tags += row.tags[at:start]
        mention: Sequence[str] = row.tokens[start:end]
        if rng.random() < share:
            mention = pool[kind][int(rng.integers(len(pool[kind])))]
        tokens += mention
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (len(mention) - 1)
        at = end
    return TaggedText((*tokens, *row.tokens[at:]), (*tags, *row.tags[at:]))


def _token_spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    return spans_of(tags, range(len(tags)), range(1, len(tags) + 1))


def tagged_examples(
    rows: Sequence[TaggedText],
    tokenizer: "Tokenizer",
    labels: Sequence[str],
    *,
    natural: Sequence[bool],
) -> list[Example]:
    """Examples without special tokens, one for each row; `natural` says which get that spacing."""
    number = {label: index for index, label in enumerate(labels)}
    joined = [
        join_tokens(row.tokens, natural=bool(n)) for row, n in zip(rows, natural, strict=True)
    ]
    encodings = tokenizer.encode_batch([text for text, _ in joined], add_special_tokens=False)
    examples = []
    for row, (text, starts), encoding in zip(rows, joined, encodings, strict=True):
        ids = np.array(encoding.ids, dtype=np.int64)
        if row.tags is None:
            examples.append(Example(ids, np.full(len(ids), UNLABELLED)))
            continue
        pieces = first_characters(text, encoding.offsets)
        try:
            numbers = [number[tag] for tag in piece_tags(row.tags, starts, pieces)]
        except KeyError as error:
            raise DataError(
                f"tag {error.args[0]!r} is not among the labels {', '.join(labels)}; "
                "add it to labels, or name another tags column"
            ) from None
        examples.append(Example(ids, np.array(numbers, dtype=np.int64)))
    return examples


def labelled_examples(
    rows: Sequence[LabelledText], tokenizer: "Tokenizer", *, per_piece: bool = False
) -> list[Example]:
    """Examples without special tokens; each has one label, or `per_piece` that label for each."""
    encodings = tokenizer.encode_batch([row.text for row in rows], add_special_tokens=False)
    return [
        Example(
            np.array(encoding.ids, dtype=np.int64),
            np.full(len(encoding.ids) if per_piece else 1, row.label),
        )
        for row, encoding in zip(rows, encodings, strict=True)
    ]


def sample(count: int, weight: float, rng: np.random.Generator) -> IntArray:
    """Row indices of one epoch: each row `floor(weight)` times, and a fresh share of the rest."""
    whole, part = divmod(weight, 1)
    rest = rng.permutation(count)[: round(part * count)]
    rows: IntArray = np.concatenate([np.tile(np.arange(count), int(whole)), rest])
    return rows


def chain(
    examples: Sequence[Example],
    share: float,
    *,
    shortest: int,
    longest: int,
    rng: np.random.Generator,
) -> list[Example]:
    """Join about `share` of the examples into long ones, up to `longest` pieces each.

    Long documents are scored in windows as long as the model takes, so some training sequences
    have to be as long. Lengths to fill are log-uniform.
    """
    chosen = rng.random(len(examples)) < share
    kept = [example for example, joined in zip(examples, chosen, strict=True) if not joined]
    open_ids: list[IntArray] = []
    open_labels: list[IntArray] = []
    room = 0
    for index in rng.permutation(np.flatnonzero(chosen)):
        example = examples[index]
        if len(example.ids) > room and open_ids:
            kept.append(Example(np.concatenate(open_ids), np.concatenate(open_labels)))
            open_ids, open_labels = [], []
        if not open_ids:
            room = _log_uniform(shortest, longest, rng)
        open_ids.append(example.ids)
        open_labels.append(example.labels)
        room -= len(example.ids)
    if open_ids:
        kept.append(Example(np.concatenate(open_ids), np.concatenate(open_labels)))
    return kept


def finish(
    example: Example,
    ends: Ends,
    *,
    per_piece: bool,
    shortest: int,
    longest: int,
    rng: np.random.Generator,
) -> Example:
    """Crop at random to a random length where it is over `longest`, and put on special tokens.

    `per_piece` says that the example has a label for each piece, not one for the whole.
    """
    ids, labels = example.ids, example.labels
    room = longest - len(ends.before) - len(ends.after)
    if len(ids) > room:
        length = _log_uniform(shortest, room, rng)
        start = int(rng.integers(len(ids) - length + 1))
        ids = ids[start : start + length]
        labels = labels[start : start + length] if per_piece else labels
    ids = np.concatenate([ends.before, ids, ends.after]).astype(np.int64)
    if per_piece:
        labels = np.pad(labels, (len(ends.before), len(ends.after)), constant_values=IGNORED)
    return Example(ids, labels)


def _log_uniform(shortest: int, longest: int, rng: np.random.Generator) -> int:
    low = math.log(min(shortest, longest))
    return round(math.exp(rng.uniform(low, math.log(longest))))


def batches(lengths: IntArray, token_budget: int, rng: np.random.Generator) -> list[IntArray]:
    """Indices of examples of like length, at most `token_budget` tokens each, in random order.

    Ties in length are drawn anew each time, so that the batches of two epochs differ.
    """
    shuffled = rng.permutation(len(lengths))
    packed = [
        shuffled[members]
        for members in pack(lengths[shuffled], max_tokens=token_budget, max_rows=token_budget)
    ]
    return [packed[index] for index in rng.permutation(len(packed))]


def pad(sequences: Sequence[IntArray], fill: int) -> IntArray:
    """One array of shape (rows, longest), filled up on the right."""
    longest = max(len(each) for each in sequences)
    out = np.full((len(sequences), longest), fill, dtype=np.int64)
    for row, each in zip(out, sequences, strict=True):
        row[: len(each)] = each
    return out


def normalised(text: str) -> str:
    """What two texts have in common that differ in case and spacing only."""
    return "".join(text.lower().split())
