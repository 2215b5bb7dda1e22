"""Named entities: tokens' labels grouped into spans, as transformers' pipeline groups them."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakescore.config import Aggregation
from lakescore.encoder import Scores
from lakescore.text import Windows
from lakescore.tokens import Tokens

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

OUTSIDE = "O"
ENTITY_TYPE = pa.struct(
    [
        ("entity_group", pa.string()),
        ("word", pa.string()),
        ("score", pa.float32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
    ]
)


class Entities:
    """Spans of text with a type, a score and code-point offsets.

    The four aggregation strategies, and what a word is, are those of transformers'
    TokenClassificationPipeline (4.50 to 5), with two differences: `word` is the text between the
    offsets, not decoded tokens; and a span neither begins nor ends with white space.
    """

    name = "entities"
    arrow_type: pa.DataType = pa.list_(ENTITY_TYPE)

    def __init__(self, labels: tuple[str, ...], *, aggregation: Aggregation) -> None:
        self.aggregation = aggregation
        self.top = aggregation != "average"
        groups = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
        self._groups = list(dict.fromkeys([OUTSIDE, *groups]))
        self._group_of = np.array([self._groups.index(group) for group in groups], np.int64)
        self._begins = np.array([label.startswith("B-") for label in labels])

    @property
    def types(self) -> list[str]:
        """The types of entity that the model knows, in its labels' order."""
        return self._groups[1:]

    def decode(
        self, scores: Scores, tokens: Tokens, windows: Windows, texts: list[str]
    ) -> pa.Array:
        """Return the entities of each text, in the order of the text."""
        del windows  # the encoder has already chosen each token's window
        first_token, label, score = self._units(scores, tokens)
        last_token = np.append(first_token[1:], len(tokens.ids)) - 1
        row = np.searchsorted(tokens.bounds, first_token, side="right") - 1

        # A span begins where the text or the type changes, and at every B- label.
        group = self._group_of[label]
        is_new = self._begins[label]
        is_new[:1] = True
        is_new[1:] |= (group[1:] != group[:-1]) | (row[1:] != row[:-1])
        begin = np.flatnonzero(is_new)
        end = np.append(begin[1:], len(group))
        size = np.maximum(end - begin, 1)
        mean = np.add.reduceat(score, begin) / size if len(begin) else score[:0]

        inside = group[begin] != 0  # 0 is OUTSIDE
        begin, end, mean = begin[inside], end[inside], mean[inside]
        return self._spans(
            row[begin],
            group[begin],
            mean.astype(np.float32),
            tokens.starts[first_token[begin]],
            tokens.ends[last_token[end - 1]],
            texts,
        )

    def _units(self, scores: Scores, tokens: Tokens) -> tuple[IntArray, IntArray, FloatArray]:
        """Return (first token, label, score) of each unit: a token, or a word of several."""
        if self.aggregation == "simple":
            label, score = scores.arrays
            return np.arange(len(label)), label, score
        first = np.flatnonzero(tokens.is_word_start)
        if self.aggregation == "average":
            return first, *_average(scores.arrays[0], first)
        label, score = scores.arrays
        chosen = first if self.aggregation == "first" else _highest(score, first)
        return first, label[chosen], score[chosen]

    def _spans(
        self,
        row: IntArray,
        group: IntArray,
        score: FloatArray,
        start: IntArray,
        end: IntArray,
        texts: list[str],
    ) -> pa.Array:
        """Cut the words out, without white space at their edges, and lay them out per text."""
        places = zip(row.tolist(), start.tolist(), end.tolist(), strict=True)
        words = [texts[nth][begin:end] for nth, begin, end in places]
        # Byte-level and Unigram tokenizers count the space before a word as part of it.
        start = start + np.array([len(word) - len(word.lstrip()) for word in words], np.int64)
        words = [word.strip() for word in words]
        end = start + np.array([len(word) for word in words], np.int64)
        real = np.flatnonzero(end > start)
        counts = np.bincount(row[real], minlength=len(texts))
        offsets = np.concatenate(([0], np.cumsum(counts)))
        entities = pa.StructArray.from_arrays(
            [
                pa.array(self._groups, pa.string()).take(pa.array(group[real])),
                pa.array([words[i] for i in real.tolist()], pa.string()),
                pa.array(score[real], pa.float32()),
                pa.array(start[real], pa.int32()),
                pa.array(end[real], pa.int32()),
            ],
            fields=list(ENTITY_TYPE),
        )
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), entities)


def _average(logits: FloatArray, first: IntArray) -> tuple[IntArray, FloatArray]:
    """Return each word's best label by the mean of its tokens' probabilities, and that mean."""
    if not len(first):
        return first, logits[:0, 0]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    sizes = np.diff(np.append(first, len(shares)))
    means = np.add.reduceat(shares, first, axis=0) / sizes[:, None].astype(np.float32)
    label = means.argmax(-1)
    return label, means[np.arange(len(label)), label]


def _highest(score: FloatArray, first: IntArray) -> IntArray:
    """Return each word's token of the highest score, the earliest of equals."""
    if not len(first):
        return first
    sizes = np.diff(np.append(first, len(score)))
    highest = np.repeat(np.maximum.reduceat(score, first), sizes)
    candidates = np.flatnonzero(score == highest)
    return candidates[np.searchsorted(candidates, first)]
