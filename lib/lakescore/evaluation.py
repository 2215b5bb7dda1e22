"""How good a model is: precision, recall and F1 of entity spans, accuracy and F1 of sentiment."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakescore import labelled, tracking
from lakescore.config import (
    Aggregation,
    EncodingConfig,
    EntitiesConfig,
    MlflowConfig,
    SentimentConfig,
    TaskName,
    TasksConfig,
)
from lakescore.errors import ConfigError, DataError, ModelError
from lakescore.frame import score_with
from lakescore.labelled import ColumnsConfig, Span, spans_of, word_offsets
from lakescore.plan import make_plan
from lakescore.tables import quoted

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession


_TEXT, _TOKENS, _GOLD = "text", "gold_tokens", "gold"


@dataclass(frozen=True, slots=True)
class Figures:
    """Precision, recall and F1, with the counts behind them; a ratio over nothing is 0."""

    precision: float
    recall: float
    f1: float
    gold: int
    found: int


def figures(*, correct: int, gold: int, found: int) -> Figures:
    """Precision, recall and F1 from counts."""
    precision = correct / found if found else 0.0
    recall = correct / gold if gold else 0.0
    total = precision + recall
    return Figures(precision, recall, 2 * precision * recall / total if total else 0.0, gold, found)


@dataclass(frozen=True, slots=True)
class EntityScores:
    """Exact-match scores: a span counts where its start, end and type are all right."""

    micro: Figures
    per_type: dict[str, Figures]

    def as_metrics(self) -> dict[str, float]:
        """Flat names and values, as MLflow takes them."""
        metrics: dict[str, float] = {}
        for name, value in [("micro", self.micro), *self.per_type.items()]:
            metrics |= {
                f"{name}_precision": value.precision,
                f"{name}_recall": value.recall,
                f"{name}_f1": value.f1,
            }
        return metrics


@dataclass(frozen=True, slots=True)
class SentimentScores:
    """Accuracy, F1 per label and their mean (macro)."""

    accuracy: float
    macro_f1: float
    per_label: dict[str, Figures]

    def as_metrics(self) -> dict[str, float]:
        """Flat names and values, as MLflow takes them."""
        metrics = {"accuracy": self.accuracy, "macro_f1": self.macro_f1}
        return metrics | {f"{label}_f1": value.f1 for label, value in self.per_label.items()}


def score_entities(
    gold: Iterable[Iterable[Span]],
    found: Iterable[Iterable[Span]],
    *,
    types: Iterable[str] | None = None,
) -> EntityScores:
    """Compare the spans of each text with the gold ones; `types` are the only ones that count."""
    counted = None if types is None else set(types)
    n_gold: Counter[str] = Counter()
    n_found: Counter[str] = Counter()
    n_correct: Counter[str] = Counter()
    for expected, actual in zip(gold, found, strict=True):
        right = {span for span in expected if counted is None or span[2] in counted}
        said = {span for span in actual if counted is None or span[2] in counted}
        n_gold.update(kind for _, _, kind in right)
        n_found.update(kind for _, _, kind in said)
        n_correct.update(kind for _, _, kind in right & said)
    return EntityScores(
        micro=figures(correct=n_correct.total(), gold=n_gold.total(), found=n_found.total()),
        per_type={
            kind: figures(correct=n_correct[kind], gold=n_gold[kind], found=n_found[kind])
            for kind in sorted(n_gold.keys() | n_found.keys())
        },
    )


def score_sentiment(gold: Sequence[str], found: Sequence[str | None]) -> SentimentScores:
    """Compare labels; a text without one (`None`, a failed row) counts as wrong."""
    n_gold, n_found = Counter(gold), Counter(label for label in found if label is not None)
    n_correct = Counter(right for right, said in zip(gold, found, strict=True) if right == said)
    per_label = {
        label: figures(correct=n_correct[label], gold=n_gold[label], found=n_found[label])
        for label in sorted(n_gold.keys() | n_found.keys())
    }
    return SentimentScores(
        accuracy=n_correct.total() / len(gold) if gold else 0.0,
        macro_f1=sum(each.f1 for each in per_label.values()) / len(per_label) if per_label else 0.0,
        per_label=per_label,
    )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one model on one table, and the MLflow run that they are in."""

    table: str
    model: str
    """The version that was resolved, as scoring records it."""
    rows: int
    rows_failed: int
    scores: EntityScores | SentimentScores
    mlflow_run_id: str

    def as_metrics(self) -> dict[str, float]:
        """Flat names and values, as MLflow takes them."""
        counts = {"rows": float(self.rows), "rows_failed": float(self.rows_failed)}
        return counts | self.scores.as_metrics()


def evaluate(
    spark: "SparkSession",
    table: str,
    *,
    task: TaskName,
    model: str,
    columns: ColumnsConfig | None = None,
    types: Sequence[str] | None = None,
    aggregation: Aggregation = "first",
    encoding: EncodingConfig | None = None,
    mlflow: MlflowConfig | None = None,
) -> Evaluation:
    """Score a labelled table by lakescore's own scoring, compare, and record an MLflow run.

    `types` are the entity types that count; all if None. A row that cannot be scored counts as
    one in which nothing was found.

    Raises:
        ConfigError: `types` names a type that neither the model nor the table has.
        DataError: a column is missing or a labelled row is malformed.
        ModelError: the model cannot be resolved, is unsafe, or does not fit its task.
        TableError: there is no such table.
    """
    columns, mlflow = columns or ColumnsConfig(), mlflow or MlflowConfig()
    tasks = TasksConfig(sentiment=SentimentConfig(model=model))
    if task == "entities":
        tasks = TasksConfig(entities=EntitiesConfig(model=model, aggregation=aggregation))
    encoding = encoding or EncodingConfig()
    frame = _gold(spark, table, task, columns)
    # Before the model is resolved: it may be in this store.
    tracking.configure(mlflow.tracking_uri, mlflow.experiment, registry_uri=mlflow.registry_uri)
    plan = make_plan(spark, tasks, encoding)
    snapshot = plan.tasks[0].snapshot
    scored: pd.DataFrame = (
        score_with(plan, frame, carried=frame.columns, text=_TEXT).drop("model").toPandas()
    )
    if task == "entities":
        scores: EntityScores | SentimentScores = compare_entities(
            scored, table, snapshot.labels, columns, types
        )
    else:
        if snapshot.problem_type not in (None, "single_label_classification"):
            raise ModelError(
                f"{model}: problem_type is {snapshot.problem_type}; evaluate takes "
                "single_label_classification only"
            )
        scores = compare_sentiment(scored, table, snapshot.labels, columns)

    params = {"table": table, "model": model, "model.version": snapshot.version, "task": task}
    counted = {"types": ",".join(types)} if types else {}
    with tracking.start_run(
        name=f"evaluate {labelled.short_name(table)}",
        params=params | counted | {"dtype": encoding.dtype},
        tags={"lakescore.fingerprint": snapshot.fingerprint},
    ) as run:
        run.log_source(table, None, name=labelled.short_name(table), context="evaluation")
        result = Evaluation(
            table=table,
            model=snapshot.version,
            rows=len(scored),
            rows_failed=int(scored["error"].notna().sum()),
            scores=scores,
            mlflow_run_id=run.id,
        )
        run.log_metrics(result.as_metrics(), step=0)
    return result


def _gold(spark: "SparkSession", table: str, task: TaskName, columns: ColumnsConfig) -> "DataFrame":
    """The labelled columns under names of our own, and the text to score."""
    frame = labelled.read_table(spark, table)
    labelled.check_columns(dict(frame.dtypes), task, columns, table)
    if task == "entities":
        tokens, tags = quoted(columns.tokens), quoted(columns.tags)
        return frame.selectExpr(
            f"array_join({tokens}, ' ') AS {_TEXT}", f"{tokens} AS {_TOKENS}", f"{tags} AS {_GOLD}"
        )
    text, label = quoted(columns.text), quoted(columns.label)
    return frame.selectExpr(f"{text} AS {_TEXT}", f"{label} AS {_GOLD}")


def compare_entities(
    scored: "pd.DataFrame",
    table: str,
    labels: Sequence[str],
    columns: ColumnsConfig,
    types: Sequence[str] | None,
) -> EntityScores:
    """Compare the column `entities` of scored rows with their tags.

    Raises:
        ConfigError: a type in `types` is neither the table's nor one of the model's `labels`.
        DataError: a row is malformed, or its tags have no type in common with the model.
    """
    rows = labelled.read_tagged(scored, tokens=_TOKENS, tags=_GOLD, table=table)
    gold = [spans_of(row.tags or (), *word_offsets(row.tokens)) for row in rows]
    there = {kind for spans in gold for _, _, kind in spans}
    known = {label.partition("-")[2] or label for label in labels} - {"O"}
    if there and not there & known:
        raise DataError(
            f"{table}: column {columns.tags}: its types are {', '.join(sorted(there))}, the "
            f"model's {', '.join(sorted(known))}; name another tags column"
        )
    if unknown := set(types or ()) - there - known:
        raise ConfigError(
            f"labels: {', '.join(sorted(unknown))}: neither the table nor the model has such a "
            f"type; there are {', '.join(sorted(there | known))}"
        )
    found = [
        [(each["start"], each["end"], each["entity_group"]) for each in entities]
        if entities is not None
        else []
        for entities in scored["entities"]
    ]
    return score_entities(gold, found, types=types)


def compare_sentiment(
    scored: "pd.DataFrame", table: str, labels: Sequence[str], columns: ColumnsConfig
) -> SentimentScores:
    """Compare the column `sentiment` of scored rows with their labels.

    Raises:
        DataError: a text is null, or a label is not one of the model's.
    """
    rows = labelled.read_labelled(scored, text=_TEXT, label=_GOLD, labels=labels, table=table)
    found = [None if each is None else each["label"] for each in scored["sentiment"]]
    return score_sentiment([labels[row.label] for row in rows], found)
