"""Counting a scored table, by Spark; only a few rows of it come to the driver."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lakescore.errors import TableError
from lakescore.report.summary import BINS, KINDS, Entity, FailedRow, Sample, Summary
from lakescore.tables import quoted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row

NAMES_PER_TYPE = 10
FAILED_PER_CODE = 5
# How many texts of each kind are shown; a text is of the first kind that fits.
SAMPLES = {"long": 3, "right_to_left": 4, "other_script": 6, "named": 10, "plain": 5}
CANDIDATES = 20_000
LONGEST_SAMPLE = 100_000
LONG_TOKENS = 512

# By a text's first letter: that says which way it runs, too.
_RIGHT_TO_LEFT = "^[^A-Za-z]{0,200}[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]"
_OTHER_SCRIPT = (
    "^[^A-Za-z]{0,200}[\u0370-\u058f\u0900-\u1dff\u2e80-\ua4cf\uac00-\ud7a3\uff66-\uff9d]"
)


def summarise(df: "DataFrame", *, text_column: str = "text", key: Sequence[str] = ()) -> Summary:
    """Count a scored table: a few short Spark jobs, and a few dozen rows of samples.

    Raises:
        TableError: the table has not the columns that scoring adds.
    """
    columns = {column.name: column.dataType.simpleString() for column in df.schema}
    if missing := sorted({"error", "n_tokens"} - columns.keys()):
        raise TableError(
            f"the table has no column {', '.join(missing)}; name the target of a score job"
        )
    if unknown := sorted(set(key) - columns.keys()):
        raise TableError(f"key: the table has no column {unknown[0]}; it has {', '.join(columns)}")
    # Queries are SQL over names that are checked or quoted: no column need be built here.
    totals = _totals(df, columns)
    kind, limits = _sentiment_kind(columns, totals["low"], totals["high"])
    facts = _facts(df, columns, limits)
    entity_scores, sentiment_scores = facts.get("entity", {}), facts.get("sentiment", {})
    models: dict[str, dict[str, int]] = {}
    for (model, _), rows in _pairs(facts, "model"):
        task, _, version = model.partition("=")
        models.setdefault(task, {})[version] = rows
    name = _key(key or list(columns)[:1])
    return Summary(
        rows=totals["rows"],
        failed=totals["failed"],
        tokens=totals["tokens"] or 0,
        longest=totals["longest"] or 0,
        first_scored=totals["first_scored"],
        last_scored=totals["last_scored"],
        run_id=totals["run_id"],
        runs={run: rows for (run, _), rows in _pairs(facts, "run")},
        models=models,
        errors={code: rows for (code, _), rows in _pairs(facts, "error")},
        token_bins={place: rows for (_, place), rows in _pairs(facts, "tokens")},
        entity_scores=_histograms(entity_scores) if "entities" in columns else None,
        sentiment_scores=_histograms(sentiment_scores) if "sentiment" in columns else None,
        sentiment_kind=kind,
        sentiment_range=limits,
        names=_names(df) if entity_scores else {},
        has_text=text_column in columns,
        samples=_samples(df, columns, text_column, name, totals["rows"]),
        failed_rows=_failed_rows(df, name) if totals["failed"] else (),
    )


def _totals(df: "DataFrame", columns: Mapping[str, str]) -> "Row":
    """Return the sums over the whole table, in one row."""
    moment = "date_format({}(scored_at), 'yyyy-MM-dd HH:mm:ss')"
    timed, has_run = "scored_at" in columns, "run_id" in columns
    score = "CAST(NULL AS double)"
    if columns.get("sentiment", "").startswith("struct"):
        score = "nullif(CAST(sentiment.score AS double), double('NaN'))"
    row = df.selectExpr(
        "count(1) AS rows",
        "count_if(error IS NOT NULL) AS failed",
        "sum(n_tokens) AS tokens",
        "max(n_tokens) AS longest",
        f"{moment.format('min') if timed else 'NULL'} AS first_scored",
        f"{moment.format('max') if timed else 'NULL'} AS last_scored",
        f"{'max_by(run_id, scored_at)' if timed and has_run else 'NULL'} AS run_id",
        f"min({score}) AS low",
        f"max({score}) AS high",
    ).first()
    assert row is not None  # an aggregate without groups always has one row
    return row


def _sentiment_kind(
    columns: Mapping[str, str], low: float | None, high: float | None
) -> tuple[str, tuple[float, float]]:
    """Tell the kind of sentiment by its type and range: probabilities are within 0 and 1."""
    if columns.get("sentiment", "").startswith("array"):
        return "multi", (0.0, 1.0)
    if low is None or high is None or (low >= 0 and high <= 1):
        return "single", (0.0, 1.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "regression", (-1.0, 1.0)
    return "regression", (low, high if high > low else low + 1)


def _facts(
    df: "DataFrame", columns: Mapping[str, str], limits: tuple[float, float]
) -> dict[str, dict[tuple[str, int], int]]:
    """Count everything of few distinct values in one pass: kind -> (label, bin) -> rows."""

    def fact(kind: str, label: str, place: str = "0") -> str:
        return f"named_struct('kind', '{kind}', 'label', {label}, 'bin', CAST({place} AS int))"

    def bin_of(score: str, low: float = 0.0, high: float = 1.0) -> str:
        share = f"(CAST({score} AS double) - double('{low!r}')) / double('{high - low!r}')"
        return f"least(greatest(floor({share} * {BINS}), 0), {BINS - 1})"

    single = [
        fact("error", "error.code"),
        fact("tokens", "''", "IF(n_tokens > 0, length(bin(n_tokens)) - 1, NULL)"),
    ]
    several = []
    if "run_id" in columns:
        single.append(fact("run", "run_id"))
    if "model" in columns:
        model = fact("model", "concat(m.key, '=', m.value)")
        several.append(f"transform(map_entries(model), m -> {model})")
    if "entities" in columns:
        entity = fact("entity", "e.entity_group", bin_of("e.score"))
        several.append(f"transform(entities, e -> {entity})")
    if columns.get("sentiment", "").startswith("array"):
        label = fact("sentiment", "s.label", bin_of("s.score"))
        several.append(f"transform(sentiment, s -> {label})")
    elif "sentiment" in columns:
        label = fact("sentiment", "sentiment.label", bin_of("sentiment.score", *limits))
        single.append(label)
    arrays = [f"array({', '.join(single)})", *(f"coalesce({each}, array())" for each in several)]
    known = "f -> f.label IS NOT NULL AND f.bin IS NOT NULL"
    facts = df.selectExpr(f"inline(filter(concat({', '.join(arrays)}), {known}))")
    found: dict[str, dict[tuple[str, int], int]] = {}
    for row in facts.groupBy("kind", "label", "bin").count().collect():
        found.setdefault(row["kind"], {})[row["label"], row["bin"]] = row["count"]
    return found


def _pairs(
    facts: Mapping[str, Mapping[tuple[str, int], int]], kind: str
) -> list[tuple[tuple[str, int], int]]:
    """Return one kind's counts, most first; ties by name."""
    return sorted(facts.get(kind, {}).items(), key=lambda item: (-item[1], item[0]))


def _histograms(counts: Mapping[tuple[str, int], int]) -> dict[str, tuple[int, ...]]:
    """Return the bins of each label, in order of the labels."""
    labels = sorted({label for label, _ in counts})
    return {label: tuple(counts.get((label, n), 0) for n in range(BINS)) for label in labels}


def _names(df: "DataFrame") -> dict[str, tuple[tuple[str, int], ...]]:
    """Return the most frequent entities of each type."""
    place = "row_number() OVER (PARTITION BY type ORDER BY count DESC, word) AS place"
    counts = df.selectExpr("inline(entities)").selectExpr("entity_group AS type", "word")
    rows = (
        counts.where("trim(word) <> ''")
        .selectExpr("type", "left(word, 80) AS word")
        .groupBy("type", "word")
        .count()
        .selectExpr("*", place)
        .where(f"place <= {NAMES_PER_TYPE}")
        .orderBy("type", "place")
        .collect()
    )
    types = dict.fromkeys(row["type"] for row in rows)
    return {
        name: tuple((row["word"], row["count"]) for row in rows if row["type"] == name)
        for name in types
    }


def _samples(
    df: "DataFrame", columns: Mapping[str, str], text_column: str, key: str, rows: int
) -> tuple[Sample, ...]:
    """Return some texts of each kind: of a big table, out of a random sample of its rows."""
    if text_column not in columns or not rows:
        return ()
    sentiment = "NULL"
    if columns.get("sentiment", "").startswith("array"):
        sentiment = "sentiment"
    elif "sentiment" in columns:
        sentiment = "IF(sentiment IS NULL, NULL, array(sentiment))"
    entities = "entities" if "entities" in columns else "array()"
    kind = (
        f"CASE WHEN n_tokens > {LONG_TOKENS} THEN 'long' "
        f"WHEN text RLIKE '{_RIGHT_TO_LEFT}' THEN 'right_to_left' "
        f"WHEN text RLIKE '{_OTHER_SCRIPT}' THEN 'other_script' "
        "WHEN size(entities) >= 2 THEN 'named' ELSE 'plain' END AS kind"
    )
    order = "row_number() OVER (PARTITION BY kind ORDER BY xxhash64(text), text) AS place"
    chosen = " OR ".join(f"kind = '{name}' AND place <= {n}" for name, n in SAMPLES.items())
    some = df if rows <= CANDIDATES else df.sample(fraction=CANDIDATES / rows, seed=7)
    found = (
        some.where("error IS NULL")
        .selectExpr(
            f"{key} AS key",
            f"CAST({quoted(text_column)} AS string) AS text",
            f"{entities} AS entities",
            f"{sentiment} AS sentiment",
            "n_tokens",
        )
        .where(f"text IS NOT NULL AND length(text) <= {LONGEST_SAMPLE}")
        .dropDuplicates(["text"])
        .selectExpr("*", kind)
        .selectExpr("*", order)
        .where(chosen)
        .orderBy("kind", "place")
        .collect()
    )
    return tuple(
        Sample(row["kind"], row["key"], row["text"], row["n_tokens"] or 0, *_results(row))
        for row in sorted(found, key=lambda row: KINDS.index(row["kind"]))
    )


def _results(row: Any) -> tuple[tuple[Entity, ...], tuple[tuple[str, float], ...]]:
    entities = tuple(
        Entity(one["entity_group"], one["score"], one["start"], one["end"])
        for one in row["entities"] or ()
    )
    return entities, tuple((one["label"], one["score"]) for one in row["sentiment"] or ())


def _failed_rows(df: "DataFrame", key: str) -> tuple[FailedRow, ...]:
    """Return the keys of some rows of each error code."""
    place = "row_number() OVER (PARTITION BY code ORDER BY key) AS place"
    failed = df.where("error IS NOT NULL").selectExpr(f"{key} AS key", "error.code", "error.detail")
    rows = failed.selectExpr("*", place).where(f"place <= {FAILED_PER_CODE}")
    return tuple(
        FailedRow(row["key"], row["code"], row["detail"] or "")
        for row in rows.orderBy("code", "place").collect()
    )


def _key(names: Sequence[str]) -> str:
    """Return the SQL of a row's name: its key, shortened."""
    parts = ", ".join(f"coalesce(CAST({quoted(name)} AS string), 'null')" for name in names)
    return f"left(concat_ws(', ', {parts}), 80)"
