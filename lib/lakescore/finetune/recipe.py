"""What a fine-tuning run is: strict, frozen settings; conf/finetune_*.yml are examples."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from lakescore.config import MlflowConfig, Name, Names, Strict, TaskName
from lakescore.labelled import ColumnsConfig

Share = Annotated[float, Field(ge=0, le=1)]
Weights = dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


def _names_of_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"is {', '.join(labels) or 'empty'}; name two labels or more, each once")
    if numbered := [label for label in labels if re.fullmatch(r"LABEL_\d+", label)]:
        raise ValueError(f"has {numbered[0]}, which says nothing; name the labels")
    return labels


class VocabularyConfig(Strict):
    """Keep only the WordPiece entries that the texts of some tables use most."""

    entries: Annotated[int, Field(ge=1)]
    """How many."""
    tables: Names
    """The tables whose texts are counted."""


class DistillationConfig(Strict):
    """Learn from a fine-tuned teacher's probabilities, too. It has to share the tokenizer."""

    teacher: Name
    """The folder of its checkpoint."""
    soft_share: Share = 0.7
    """How much of the loss compares with the teacher; the rest with the row's label."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """What both models' logits are divided by; higher shows more of what the teacher doubts."""
    unlabelled: Weights = Field(default_factory=dict)
    """Tables with a text column and no labels, and their weights."""


class AugmentationConfig(Strict):
    """Shares of the rows of an entity set that are changed, drawn anew in each epoch."""

    natural_spacing: Share = 0.0
    """`do n't stop , he said` becomes `don't stop, he said`."""
    swap_mentions: Share = 0.0
    """Mentions, not rows, whose place another mention of their type and table takes."""
    chain: Share = 0.0
    """Rows that are joined into sequences as long as the windows over long text."""


class FinetuneConfig(Strict):
    """One fine-tuning run. A table's weight says how often an epoch sees each of its rows."""

    task: TaskName
    """What the model is for."""
    base: Name
    """The folder of an encoder, or `package:NAME/FOLDER` for one inside an installed package."""
    output: Name
    """The folder to write the checkpoint to."""
    labels: Annotated[Names, AfterValidator(_names_of_labels)]
    """Its labels in their order: of entities the BIO tags, of sentiment the names."""
    train: Annotated[Weights, Field(min_length=1)]
    """Tables to train on, and how often an epoch sees each row of them."""
    valid: Annotated[Weights, Field(min_length=1)]
    """Tables to choose the best epoch by; never trained on."""
    exclude: Names = ()
    """Tables whose texts are not trained on, wherever they occur (case and space aside)."""
    columns: ColumnsConfig = ColumnsConfig()
    vocabulary: VocabularyConfig | None = None
    layers: Annotated[tuple[int, ...], Field(strict=False)] | None = None
    """The layers of the base to keep, from 0; all of them if not given."""
    distillation: DistillationConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens of a sequence; of a longer text, each epoch sees a crop at a random place."""
    shortest_crop: Annotated[int, Field(ge=1)] = 64
    """Pieces of the shortest crop, and of the shortest chain; lengths are log-uniform."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Times that the tables are gone through; the best one's weights are written."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """The highest, after the warm-up; it falls to 0 by the end."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """That of AdamW."""
    warmup: Share = 0.1
    """The share of all steps in which the learning rate rises."""
    dropout: Share = 0.0
    """That of hidden layers."""
    token_budget: Annotated[int, Field(ge=8)] = 2048
    """Tokens in one step, padding included; of all GPUs of the machine together."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of all that is drawn at random."""
    mlflow: MlflowConfig = MlflowConfig()

    @property
    def tables(self) -> tuple[str, ...]:
        """Every table that the run reads, once."""
        vocabulary = self.vocabulary.tables if self.vocabulary else ()
        unlabelled = self.distillation.unlabelled if self.distillation else {}
        named = [*self.train, *self.valid, *unlabelled, *self.exclude, *vocabulary]
        return tuple(dict.fromkeys(named))
