"""Sentiment, or any other class of a whole text: windows' logits to one result per text."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakescore.encoder import Scores
from lakescore.text import Windows
from lakescore.tokens import Tokens

FloatArray = npt.NDArray[np.float32]

LABEL_TYPE = pa.struct([("label", pa.string()), ("score", pa.float32())])


class Sentiment:
    """The label of a text with its score, as the model's `problem_type` says.

    Single-label: softmax, the best label. Multi-label: sigmoid, all labels in the model's order.
    Regression: the raw value under the model's one label. This follows transformers'
    TextClassificationPipeline, one label without a problem type being a sigmoid there too.
    """

    name = "sentiment"
    top = False

    def __init__(self, labels: tuple[str, ...], *, problem_type: str | None) -> None:
        self.labels = labels
        self.is_multi_label = problem_type == "multi_label_classification"
        self.is_regression = problem_type == "regression"
        self.is_sigmoid = self.is_multi_label or (len(labels) == 1 and not self.is_regression)

    @property
    def arrow_type(self) -> pa.DataType:
        """A label and its score; for a multi-label model a list of all of them."""
        return pa.list_(LABEL_TYPE) if self.is_multi_label else LABEL_TYPE

    def decode(
        self, scores: Scores, tokens: Tokens, windows: Windows, texts: list[str]
    ) -> pa.Array:
        """Return each text's result; a long text's windows count by their tokens."""
        del tokens
        values = self._activate(scores.arrays[0])
        weights = np.maximum(windows.lengths, 1).astype(np.float64)
        total = np.bincount(windows.row, weights, minlength=len(texts))
        sums = np.stack(
            [np.bincount(windows.row, weights * column, len(texts)) for column in values.T], axis=-1
        ).reshape(len(texts), len(self.labels))
        means: FloatArray = (sums / np.maximum(total, 1)[:, None]).astype(np.float32)
        names = pa.array(self.labels, pa.string())
        if self.is_multi_label:
            every = names.take(pa.array(np.tile(np.arange(len(self.labels)), len(texts))))
            items = _label_scores(every, means.reshape(-1))
            bounds = np.arange(len(texts) + 1, dtype=np.int32) * len(self.labels)
            return pa.ListArray.from_arrays(pa.array(bounds), items)
        return _label_scores(names.take(pa.array(means.argmax(-1))), means.max(-1))

    def _activate(self, logits: FloatArray) -> npt.NDArray[np.float64]:
        values = logits.astype(np.float64)
        if self.is_regression:
            return values
        if self.is_sigmoid:
            with np.errstate(over="ignore"):  # exp(-logit) may be infinite: then the score is 0
                return np.asarray(1 / (1 + np.exp(-values)))
        shares = np.exp(values - values.max(-1, keepdims=True))
        return np.asarray(shares / shares.sum(-1, keepdims=True))


def _label_scores(labels: pa.Array, scores: FloatArray) -> pa.StructArray:
    return pa.StructArray.from_arrays(
        [labels, pa.array(scores, pa.float32())], fields=list(LABEL_TYPE)
    )
