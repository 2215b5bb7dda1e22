"""What the report says of a scored table: plain data, so that pages and figures need no Spark."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BINS = 20
KINDS = ("named", "plain", "other_script", "right_to_left", "long")
"""The kinds of samples, in the order in which they are shown."""


@dataclass(frozen=True)
class Entity:
    """One entity of a sample; start and end count code points."""

    type: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Sample:
    """One row to show; `kind` is one of KINDS."""

    kind: str
    key: str
    text: str
    n_tokens: int
    entities: tuple[Entity, ...] = ()
    sentiment: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class FailedRow:
    """One row that could not be scored."""

    key: str
    code: str
    detail: str


@dataclass(frozen=True)
class Summary:
    """Counts over a scored table, and a bounded sample of its rows."""

    rows: int
    failed: int = 0
    tokens: int = 0
    longest: int = 0
    first_scored: str | None = None
    last_scored: str | None = None
    run_id: str | None = None
    """The latest run that wrote here."""
    runs: Mapping[str, int] = field(default_factory=dict)
    """Rows by run."""
    models: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rows by task and model version."""
    errors: Mapping[str, int] = field(default_factory=dict)
    token_bins: Mapping[int, int] = field(default_factory=dict)
    """Rows by the power of two below their number of tokens: bin 3 is 8 to 15."""
    entity_scores: Mapping[str, tuple[int, ...]] | None = None
    """Entities of each type in BINS bins of their score; None where the task was not run."""
    sentiment_scores: Mapping[str, tuple[int, ...]] | None = None
    """Rows of each label in BINS bins of the score, over `sentiment_range`."""
    sentiment_kind: str = "single"
    """single, multi (every label has a score in every row), or regression."""
    sentiment_range: tuple[float, float] = (0.0, 1.0)
    names: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    """The most frequent entities of each type."""
    has_text: bool = True
    samples: tuple[Sample, ...] = ()
    failed_rows: tuple[FailedRow, ...] = ()

    @property
    def entities(self) -> int:
        """The number of all entities."""
        return sum(map(sum, (self.entity_scores or {}).values()))

    @property
    def labels(self) -> dict[str, int]:
        """Rows by label, most first; of a multi-label model, those with a score of 0.5 or more."""
        begin = BINS // 2 if self.sentiment_kind == "multi" else 0
        counts = {label: sum(bins[begin:]) for label, bins in (self.sentiment_scores or {}).items()}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
