"""What lakescore finds in a text: one module per task, all of the same small shape.

A task names the head that it needs, says which Arrow type its results have, and turns
the encoder's arrays into an Arrow array of one value per text. docs/contributing.md says what a
new task needs beside its module here.
"""

from typing import Protocol

import pyarrow as pa

from lakescore.encoder import Scores
from lakescore.text import Windows
from lakescore.tokens import Tokens


class Task(Protocol):
    """Turns a model's scores into one value per text."""

    name: str
    top: bool
    """Whether the encoder should return the best label only, instead of all logits."""

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of one text's result."""

    def decode(
        self, scores: Scores, tokens: Tokens, windows: Windows, texts: list[str]
    ) -> pa.Array:
        """Return `arrow_type` values, one per text; those of failed texts mean nothing."""
