"""The tables of a fine-tuning run as rows that give epochs of examples, and figures on others."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lakescore.errors import DataError
from lakescore.evaluation import score_entities, score_sentiment
from lakescore.finetune import examples
from lakescore.finetune.examples import Example, IntArray
from lakescore.finetune.recipe import FinetuneConfig
from lakescore.labelled import (
    UNLABELLED,
    LabelledText,
    TaggedText,
    read_labelled,
    read_tagged,
    short_name,
    spans_of,
    word_offsets,
)
from lakescore.tokens import Tokenizer as WordTokenizer

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer

Predict = Callable[[Sequence[IntArray]], list[IntArray]]
"""From sequences of ids to the best label ids: one for each piece, or one for the whole."""

log = logging.getLogger(__name__)


class Dataset:
    """The tables as rows, ready to give epochs of examples and figures on the valid ones."""

    def __init__(
        self,
        tables: Mapping[str, "pd.DataFrame"],
        config: FinetuneConfig,
        tokenizer: "Tokenizer",
    ):
        self._config, self._tokenizer = config, tokenizer
        self._ends = examples.Ends.of(tokenizer)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._words = WordTokenizer(
            tokenizer,
            pad_id=0,
            unknown_id=tokenizer.token_to_id(unknown) if unknown else None,
            max_length=config.max_length,
        )
        excluded = {
            examples.normalised(text)
            for table in config.exclude
            for text in tables[table][config.columns.text].dropna()
        }
        self._train: list[tuple[list[Any], float]] = []
        for table, weight in config.train.items():
            rows = self._labelled(tables[table], table)
            kept = [row for row in rows if examples.normalised(row.text) not in excluded]
            log.info("%s: %d rows, %d excluded", table, len(rows), len(rows) - len(kept))
            if not kept:
                raise DataError(
                    f"{table}: no row is left to train on; it is empty, or all of its texts are in "
                    "the excluded tables: take it out of train"
                )
            self._train.append((kept, weight))
        if config.distillation is not None:
            for table, weight in config.distillation.unlabelled.items():
                texts = tables[table][config.columns.text].dropna()
                self._train.append(([LabelledText(text, UNLABELLED) for text in texts], weight))
        self._valid: dict[str, list[Any]] = {}
        for table, weight in config.valid.items():
            rows = self._labelled(tables[table], table)
            chosen = examples.sample(len(rows), weight, np.random.default_rng(config.seed))
            self._valid[table] = [rows[index] for index in np.sort(chosen)]

    def _labelled(self, frame: "pd.DataFrame", table: str) -> list[Any]:
        columns = self._config.columns
        if self._config.task == "entities":
            return read_tagged(frame, tokens=columns.tokens, tags=columns.tags, table=table)
        return read_labelled(
            frame,
            text=columns.text,
            label=columns.label,
            labels=self._config.labels,
            table=table,
        )

    def epoch(self, rng: np.random.Generator) -> list[Example]:
        """One epoch's examples, sampled and augmented anew."""
        config = self._config
        per_piece = config.task == "entities"
        drawn: list[Example] = []
        for rows, weight in self._train:
            chosen = [rows[index] for index in examples.sample(len(rows), weight, rng)]
            if chosen and isinstance(chosen[0], TaggedText):
                made = self._tagged(chosen, examples.mentions(rows), rng)
            else:
                made = examples.labelled_examples(chosen, self._tokenizer, per_piece=per_piece)
            drawn += [
                examples.finish(
                    each,
                    self._ends,
                    per_piece=per_piece,
                    shortest=config.shortest_crop,
                    longest=config.max_length,
                    rng=rng,
                )
                for each in made
            ]
        return drawn

    def _tagged(
        self, rows: list[TaggedText], pool: dict[str, Any], rng: np.random.Generator
    ) -> list[Example]:
        augmentation = self._config.augmentation
        if augmentation.swap_mentions:
            share = augmentation.swap_mentions
            rows = [examples.swap_mentions(row, pool, rng, share) for row in rows]
        natural = rng.random(len(rows)) < augmentation.natural_spacing
        made = examples.tagged_examples(
            rows, self._tokenizer, self._config.labels, natural=natural.tolist()
        )
        return examples.chain(
            made,
            augmentation.chain,
            shortest=self._config.shortest_crop,
            longest=self._config.max_length - len(self._ends.before) - len(self._ends.after),
            rng=rng,
        )

    def evaluate(self, predict: Predict) -> tuple[dict[str, float], float]:
        """Figures on each valid table, and the mean of their micro F1 or accuracy."""
        metrics: dict[str, float] = {}
        headlines = []
        for table, rows in self._valid.items():
            if self._config.task == "entities":
                figures = self._evaluate_entities(predict, rows)
                headlines.append(figures["micro_f1"])
            else:
                figures = self._evaluate_sentiment(predict, rows)
                headlines.append(figures["accuracy"])
            metrics |= {f"{short_name(table)}/{name}": value for name, value in figures.items()}
        return metrics, float(np.mean(headlines)) if headlines else 0.0

    def _sequences(self, pieces: Sequence[Sequence[int] | IntArray]) -> list[IntArray]:
        room = self._config.max_length - len(self._ends.before) - len(self._ends.after)
        before, after = self._ends.before, self._ends.after
        return [np.array([*before, *each[:room], *after], np.int64) for each in pieces]

    def _evaluate_entities(self, predict: Predict, rows: list[TaggedText]) -> dict[str, float]:
        """As scoring does by default: a word takes the label of its first piece."""
        texts = [row.text for row in rows]
        tokens = self._words.tokenize(texts)
        bounds = list(pairwise(tokens.bounds.tolist()))
        predicted = predict(self._sequences([tokens.ids[begin:end] for begin, end in bounds]))
        gold, found = [], []
        for row, (begin, _), best in zip(rows, bounds, predicted, strict=True):
            gold.append(spans_of(row.tags or (), *word_offsets(row.tokens)))
            best = best[len(self._ends.before) : len(best) - len(self._ends.after)]
            first = begin + np.flatnonzero(tokens.is_word_start[begin : begin + len(best)])
            last = np.append(first[1:], begin + len(best)) - 1 if len(first) else first
            tags = [self._config.labels[label] for label in best[first - begin]]
            offsets = np.stack([tokens.starts[first], tokens.ends[first]], axis=-1).tolist()
            starts = examples.first_characters(row.text, offsets)
            found.append(spans_of(tags, starts.tolist(), tokens.ends[last].tolist()))
        return score_entities(gold, found).as_metrics()

    def _evaluate_sentiment(self, predict: Predict, rows: list[LabelledText]) -> dict[str, float]:
        encodings = self._tokenizer.encode_batch(
            [row.text for row in rows], add_special_tokens=False
        )
        labels = self._config.labels
        predicted = predict(self._sequences([each.ids for each in encodings]))
        found = [labels[int(best[0])] for best in predicted]
        return score_sentiment([labels[row.label] for row in rows], found).as_metrics()
