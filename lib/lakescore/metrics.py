"""What is counted of scored rows: the expressions that Spark sums, and what follows from them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakescore.tasks import Task
from lakescore.tasks.entities import Entities
from lakescore.tasks.sentiment import Sentiment
from lakescore.text import ErrorCode

if TYPE_CHECKING:
    from pyspark.sql import Column

ROWS, SCORED, TOKENS = "rows", "rows_scored", "tokens"
_SCORE_SUMS = ("entities_score_sum", "sentiment_score_sum")  # recorded as means


def sums(tasks: list[Task]) -> "list[Column]":
    """Return aggregates over the scored rows, all of them sums: of counts, and of scores.

    Their names are MLflow's, where a slash makes a group: `errors/<code>`, `entities/<type>`,
    `entities_score_sum`, `sentiment/<label>`, `sentiment_score_sum`.
    """
    from pyspark.sql import functions as F

    error = F.col("error.code")
    found = {
        ROWS: F.count(F.lit(1)),
        SCORED: F.count_if(F.col("error").isNull()),
        TOKENS: F.sum("n_tokens"),
    }
    found |= {f"errors/{code}": F.count_if(error == F.lit(code)) for code in ErrorCode}
    for task in tasks:
        if isinstance(task, Entities):
            found |= _entity_sums(task)
        elif isinstance(task, Sentiment):
            found |= _sentiment_sums(task)
        else:
            raise AssertionError(f"{task.name}: nothing says what to count of it")
    return [F.coalesce(value, F.lit(0)).cast("double").alias(name) for name, value in found.items()]


def _entity_sums(task: Entities) -> "dict[str, Column]":
    from pyspark.sql import functions as F

    def count_of(group: str) -> "Column":
        found = F.size(F.filter(task.name, lambda one: one["entity_group"] == group))
        return F.sum(F.greatest(found, F.lit(0)))  # without ANSI mode the size of null is -1

    def add(total: "Column", one: "Column") -> "Column":
        return total + one["score"].cast("double")

    sums = {f"{task.name}/{group}": count_of(group) for group in task.types}
    sums[f"{task.name}_score_sum"] = F.sum(F.aggregate(task.name, F.lit(0.0), add))
    return sums


def _sentiment_sums(task: Sentiment) -> "dict[str, Column]":
    from pyspark.sql import functions as F

    if task.is_multi_label:
        # All labels come in the model's order: the share of a label is its mean probability.
        return {
            f"{task.name}/{label}": F.sum(F.col(task.name)[nth]["score"])
            for nth, label in enumerate(task.labels)
        }
    label, score = F.col(f"{task.name}.label"), F.col(f"{task.name}.score")
    sums = {f"{task.name}/{name}": F.count_if(label == F.lit(name)) for name in task.labels}
    return sums | {f"{task.name}_score_sum": F.sum(score)}


@dataclass
class Totals:
    """The sums of some micro-batches, and what follows from them."""

    sums: dict[str, float] = field(default_factory=dict)
    refreshed: int = 0
    deleted: int = 0

    def add(self, other: "Totals") -> None:
        """Add another's sums to these."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.refreshed += other.refreshed
        self.deleted += other.deleted

    @property
    def rows(self) -> int:
        """Rows that went in, which are the rows that were scored and those that failed."""
        return int(self.sums.get(ROWS, 0))

    @property
    def scored(self) -> int:
        """Rows that were written without an error."""
        return int(self.sums.get(SCORED, 0))

    @property
    def tokens(self) -> int:
        """Tokens of the first task."""
        return int(self.sums.get(TOKENS, 0))

    @property
    def failed(self) -> dict[str, int]:
        """Rows written with an error, by its code; only codes that occurred."""
        counts = {str(code): int(self.sums.get(f"errors/{code}", 0)) for code in ErrorCode}
        return {code: count for code, count in counts.items() if count}

    def metrics(self, seconds: float) -> dict[str, float]:
        """Return what MLflow records, of a run that has taken `seconds` so far."""
        scored = self.scored
        found = {name: value for name, value in self.sums.items() if name not in _SCORE_SUMS}
        entities = self._group("entities/")
        labels = self._group("sentiment/")
        found[SCORED] = float(scored)
        found["rows_refreshed"], found["rows_deleted"] = float(self.refreshed), float(self.deleted)
        found["seconds"] = seconds
        found["rows_per_second"] = self.rows / max(seconds, 1e-9)
        found["tokens_per_second"] = self.sums.get(TOKENS, 0) / max(seconds, 1e-9)
        if total := sum(entities.values()):
            found["entities_mean_score"] = self.sums["entities_score_sum"] / total
        if scored and labels:
            shares = {name.replace("/", "_share/", 1): n / scored for name, n in labels.items()}
            found |= shares
            if "sentiment_score_sum" in self.sums:
                found["sentiment_mean_score"] = self.sums["sentiment_score_sum"] / scored
        return found

    def _group(self, prefix: str) -> dict[str, float]:
        return {name: value for name, value in self.sums.items() if name.startswith(prefix)}
