"""The report's page: one HTML file that needs nothing else, whatever the texts hold."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lakescore.report.plots import colours, svg
from lakescore.report.summary import KINDS, Entity, Sample, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lakescore.tracking import RunFigures

HEADINGS = dict(
    zip(
        KINDS,
        ("Texts with names", "Other texts", "Other scripts", "Right to left", "Long texts"),
        strict=True,
    )
)
WHOLE = 900
"""A text of so many characters is shown whole; of a longer one, what is around its entities."""
AROUND = 90
SHORTEST_GAP = 120
EXCERPTS = 8
LONGEST_ENTITY = 160


@dataclass(frozen=True)
class Piece:
    """A run of a text as it is shown: plain, an entity, or a gap of `left_out` characters."""

    text: str = ""
    entity: Entity | None = None
    left_out: int = 0


def render(
    summary: Summary,
    figures: "Mapping[str, Figure]",
    run: "RunFigures | None",
    *,
    table: str,
    with_texts: bool = True,
) -> str:
    """Return the page about a table.

    Args:
        summary: what `summarise` counted.
        figures: what `plots` drew of it.
        run: what MLflow knows of the latest run, if it could be reached.
        table: the table's name, for the heading.
        with_texts: whether texts, the names in them and the keys of rows are on the page.
    """
    types = sorted(summary.entity_scores or {})
    shown = summary.samples if with_texts else ()
    page = _template().render(
        table=visible(table),
        summary=summary,
        run=run,
        tiles=_tiles(summary, run),
        facts=_run_facts(summary, run),
        figures={name: Markup(svg(figure, name)) for name, figure in figures.items()},
        with_texts=with_texts,
        names=summary.names if with_texts else {},
        failed_rows=summary.failed_rows if with_texts else (),
        samples={kind: [one for one in shown if one.kind == kind] for kind in HEADINGS},
        headings=HEADINGS,
        type_numbers={name: number for number, name in enumerate(types)},
        type_colours=list(colours(types).values()),
        label_colours=colours(sorted(summary.sentiment_scores or {})),
        pieces=pieces,
        visible=visible,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def pieces(sample: Sample) -> list[Piece]:
    """Cut a text into plain runs, entities and gaps; offsets count code points.

    Entities that overlap one before them, or lie outside of the text, are left out.
    """
    text, end = sample.text, 0
    entities = []
    for one in sorted(sample.entities, key=lambda one: (one.start, -one.end)):
        if end <= one.start < one.end <= len(text):
            entities.append(one)
            end = one.end
    found: list[Piece] = []
    shown_to = 0
    for begin, end in _spans(text, entities):
        if begin > shown_to:
            found.append(Piece(left_out=begin - shown_to))
        found += _highlighted(text, begin, end, entities)
        shown_to = end
    if shown_to < len(text):
        found.append(Piece(left_out=len(text) - shown_to))
    return found


def visible(text: str) -> str:
    """Replace what a browser would not show, or not show in place, by a sign for it."""
    signs = []
    for letter in text.replace("\r\n", "\n"):
        code, kind = ord(letter), unicodedata.category(letter)
        if letter in "\n\t" or kind not in ("Cc", "Cs"):
            signs.append(letter)
        elif code < 0x20:
            signs.append(chr(0x2400 + code))
        else:
            signs.append("\u2421" if code == 0x7F else "\ufffd")
    return "".join(signs)


def _spans(text: str, entities: Sequence[Entity]) -> list[tuple[int, int]]:
    """Return which parts of a text to show: all, or its beginning and some of its entities."""
    if len(text) <= WHOLE:
        return [(0, len(text))] if text else []
    chosen = entities
    if len(entities) > EXCERPTS:  # from the beginning to the end, evenly
        step = (len(entities) - 1) / (EXCERPTS - 1)
        chosen = [entities[round(step * number)] for number in range(EXCERPTS)]
    spans = [(0, _word_end(text, 2 * AROUND, entities))]
    for one in chosen:
        begin = _word_begin(text, max(one.start - AROUND, 0), entities)
        end = _word_end(text, min(one.end + AROUND, len(text)), entities)
        if begin <= spans[-1][1] + SHORTEST_GAP:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    if len(text) - spans[-1][1] <= SHORTEST_GAP:
        spans[-1] = (spans[-1][0], len(text))
    return spans


def _word_begin(text: str, place: int, entities: Sequence[Entity]) -> int:
    """Go on to where a word begins, and back to where an entity does."""
    for one in entities:
        if one.start < place < one.end:
            return one.start
    for at in range(place, min(place + 25, len(text))):
        if at == 0 or text[at - 1].isspace():
            return at
    return place


def _word_end(text: str, place: int, entities: Sequence[Entity]) -> int:
    """Go back to where a word ends, and on to where an entity does."""
    for one in entities:
        if one.start < place < one.end:
            return one.end
    for at in range(place, max(place - 25, 0), -1):
        if at >= len(text) or text[at].isspace():
            return at
    while place < len(text) and unicodedata.category(text[place])[0] == "M":
        place += 1
    return place


def _highlighted(text: str, begin: int, end: int, entities: Sequence[Entity]) -> Iterator[Piece]:
    at = begin
    for one in entities:
        if begin <= one.start and one.end <= end:
            if one.start > at:
                yield Piece(visible(text[at : one.start]))
            word = text[one.start : one.end]
            if len(word) > LONGEST_ENTITY:
                word = f"{word[: LONGEST_ENTITY - 40]} … {word[-40:]}"
            yield Piece(visible(word), one)
            at = one.end
    if end > at:
        yield Piece(visible(text[at:end]))


def _tiles(summary: Summary, run: "RunFigures | None") -> list[tuple[str, str, str]]:
    """Return the figures in big type: name, value, remark."""
    scored = summary.rows - summary.failed
    share = f"{scored / summary.rows:.1%} of the rows" if summary.rows else ""
    mean = f"{summary.tokens / scored:,.0f} a row, {summary.longest:,} at most" if scored else ""
    tiles = [
        ("Rows", f"{summary.rows:,}", ""),
        ("Scored", f"{scored:,}", share),
        ("Failed", f"{summary.failed:,}", ", ".join(list(summary.errors)[:3])),
        ("Tokens", f"{summary.tokens:,}", mean),
    ]
    if summary.entity_scores is not None:
        per_row = f"{summary.entities / scored:.2f} a row" if scored else ""
        tiles.append(("Entities", f"{summary.entities:,}", per_row))
    metrics = run.metrics if run else {}
    latest = "latest run" if len(summary.runs) > 1 else ""
    if "seconds" in metrics:
        tiles.append(("Seconds", f"{metrics['seconds']:,.1f}", latest))
    if "rows_per_second" in metrics:
        tokens = metrics.get("tokens_per_second")
        remark = f"{tokens:,.0f} tokens/s" if tokens is not None else latest
        tiles.append(("Rows/s", f"{metrics['rows_per_second']:,.1f}", remark))
    return tiles


def _run_facts(summary: Summary, run: "RunFigures | None") -> list[tuple[str, str]]:
    """Return what made these scores: models, source, run, time."""
    facts = []
    for task, versions in sorted(summary.models.items()):
        for version, rows in versions.items():
            remark = f" ({rows:,} rows)" if len(versions) > 1 else ""
            facts.append((f"Model for {task}", f"{version}{remark}"))
    params = run.params if run else {}
    if "source.table" in params:
        version = params.get("source.version", "unknown")
        facts.append(("Source", f"{params['source.table']}, version {version}"))
    if summary.run_id:
        several = f" (the latest of {len(summary.runs):,})" if len(summary.runs) > 1 else ""
        facts.append(("MLflow run", f"{summary.run_id}{several}"))
    if summary.last_scored:
        first, last = summary.first_scored, summary.last_scored
        facts.append(("Scored at", last if first == last else f"{first} to {last}"))
    return [(name, visible(value)) for name, value in facts]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lakescore", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
