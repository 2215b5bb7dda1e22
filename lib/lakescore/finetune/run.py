"""Fine-tune an encoder on labelled Delta or Parquet tables: `lakescore finetune CONFIG.yml`."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lakescore import labelled, tables, tracking
from lakescore.config import check_output
from lakescore.errors import ConfigError, DataError
from lakescore.finetune import training, vocabulary
from lakescore.finetune.dataset import Dataset
from lakescore.finetune.recipe import FinetuneConfig, VocabularyConfig

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import SparkSession

OnMetrics = Callable[[Mapping[str, float], int], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The checkpoint's folder, its figures on the valid tables, and the epoch they are from."""

    output: Path
    metrics: dict[str, float]
    epoch: int
    mlflow_run_id: str | None = None


def train(
    tables: Mapping[str, "pd.DataFrame"], config: FinetuneConfig, *, on_metrics: OnMetrics
) -> FinetuneResult:
    """Fine-tune on `tables` (by their names in `config`) and write the best epoch's checkpoint.

    `on_metrics` takes figures and the optimizer step that they are from.
    """
    import torch
    from tokenizers import Tokenizer

    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    base = training.base_folder(config.base)
    state = vocabulary.plain_tokenizer((base / training.TOKENIZER_JSON).read_text("utf-8"))
    model = training.load_model(
        base, task=config.task, labels=config.labels, dropout=config.dropout
    )
    if config.vocabulary is not None:
        state = _trim(model, state, tables, config.vocabulary, config.columns.text)
    if config.layers is not None:
        training.keep_layers(model, config.layers)
    tokenizer = Tokenizer.from_str(json.dumps(state))

    distillation = config.distillation
    loop = training.Loop(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        token_budget=config.token_budget,
        teacher=_load_teacher(config, state),
        soft_share=distillation.soft_share if distillation else 0.0,
        temperature=distillation.temperature if distillation else 1.0,
    )
    data = Dataset(tables, config, tokenizer)
    best: tuple[float, FinetuneResult] | None = None
    for number in range(config.epochs):
        loop.run(
            data.epoch(rng),
            begin=number / config.epochs,
            end=(number + 1) / config.epochs,
            rng=rng,
            on_metrics=on_metrics,
        )
        metrics, score = data.evaluate(loop.predict)
        log.info("epoch %d: mean %.4f, %s", number + 1, score, metrics)
        on_metrics(metrics | {"valid_mean": score, "epoch": number + 1}, loop.step)
        if best is None or score > best[0]:
            best = score, FinetuneResult(Path(config.output), metrics, number + 1)
            training.write_whole(
                Path(config.output), lambda folder: training.save(model, state, base, folder)
            )
    assert best is not None
    return best[1]


def _trim(
    model: Any,
    state: dict[str, Any],
    tables: Mapping[str, "pd.DataFrame"],
    config: VocabularyConfig,
    text: str,
) -> dict[str, Any]:
    from tokenizers import Tokenizer

    full = Tokenizer.from_str(json.dumps(state))
    texts = (each for table in config.tables for each in tables[table][text].dropna())
    kept = vocabulary.choose_entries(
        state["model"]["vocab"],
        vocabulary.special_tokens(state),
        vocabulary.count_entries(full, texts),
        config.entries,
        prefix=state["model"]["continuing_subword_prefix"],
    )
    training.keep_entries(model, kept)
    return vocabulary.trim(state, kept)


def _load_teacher(config: FinetuneConfig, state: dict[str, Any]) -> Any:
    if config.distillation is None:
        return None
    folder = training.base_folder(config.distillation.teacher)
    theirs = vocabulary.plain_tokenizer((folder / training.TOKENIZER_JSON).read_text("utf-8"))
    if theirs != state:
        raise ConfigError(
            f"distillation.teacher: {config.distillation.teacher}: its tokenizer.json is not the "
            "student's; start from the teacher as base, or trim both by the same vocabulary"
        )
    return training.load_model(folder, task=config.task, labels=config.labels)


def finetune(spark: "SparkSession", config: FinetuneConfig) -> FinetuneResult:
    """Read the tables by Spark, fine-tune on the driver, record an MLflow run.

    Raises:
        ConfigError: the base, the layers or the teacher do not fit.
        DataError: a labelled row is malformed.
        TableError: a table is missing.
    """
    check_output(Path(config.output) / "config.json")
    tracking.configure(
        config.mlflow.tracking_uri,
        config.mlflow.experiment,
        registry_uri=config.mlflow.registry_uri,
    )
    tables = {name: _read(spark, name, config) for name in config.tables}
    with tracking.start_run(
        name=f"finetune {config.output}",
        params=_params(config.model_dump(exclude={"mlflow"})),
        tags={"lakescore.task": config.task},
    ) as run:
        for name in config.train:
            run.log_source(name, None, name=labelled.short_name(name), context="training")
        result = train(
            tables, config, on_metrics=lambda metrics, step: run.log_metrics(metrics, step=step)
        )
        for path in sorted(result.output.iterdir()):
            if path.is_file():
                run.log_file(path, "model")
    return FinetuneResult(result.output, result.metrics, result.epoch, run.id)


def _read(spark: "SparkSession", table: str, config: FinetuneConfig) -> "pd.DataFrame":
    """The columns that the run needs of a table, on the driver."""
    frame = labelled.read_table(spark, table)
    columns = config.columns
    types = dict(frame.dtypes)
    if table not in config.train and table not in config.valid:
        if columns.text not in types:
            raise DataError(
                f"{table}: no column {columns.text!r}; there are {', '.join(types)}: set columns"
            )
        return frame.select(tables.quoted(columns.text)).toPandas()
    labelled.check_columns(types, config.task, columns, table)
    if config.task == "sentiment":
        names = dict.fromkeys((columns.text, columns.label))
        return frame.select(*map(tables.quoted, names)).toPandas()
    pair = (tables.quoted(columns.tokens), tables.quoted(columns.tags))
    rows: pd.DataFrame = frame.select(*pair).toPandas()
    words = rows[columns.tokens]  # one that is missing is named by read_tagged
    texts = [None if each is None or None in each else " ".join(each) for each in words]
    return rows.assign(**{columns.text: texts})


def _params(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """The settings, flat; a table's weight under its short name."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = prefix + labelled.short_name(key)
        if isinstance(value, dict):
            flat |= _params(value, f"{name}.")
        elif value is not None:
            flat[name] = value
    return flat
