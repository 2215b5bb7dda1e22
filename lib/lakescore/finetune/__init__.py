"""A labelled table into a checkpoint: recipe, examples, training loop, trimmed vocabulary."""

from lakescore.finetune.recipe import FinetuneConfig
from lakescore.finetune.run import FinetuneResult, finetune, train

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune", "train"]
