"""The report's figures, by matplotlib; they hold counts and labels, and no word of any text."""

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lakescore.report.summary import BINS, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, LINE = "#1c2430", "#d5dae1"
PALETTE = ("#3b82c4", "#c8741a", "#2f9e6e", "#9b6bd1", "#c94f7c", "#7a8b2d", "#3d97ab", "#a0764a")
KNOWN = {
    "PER": "#3b82c4",
    "ORG": "#c8741a",
    "LOC": "#2f9e6e",
    "MISC": "#9b6bd1",
    "negative": "#d1495b",
    "positive": "#2f9e8f",
    "neutral": "#7d8896",
}
ERROR = "#d1495b"
PLAIN = "#5b7aa6"
WIDTH = 4.8
MOST_BARS = 12


def colours(names: Iterable[str]) -> dict[str, str]:
    """Give each entity type or label its colour: the well-known ones always the same."""
    named = list(names)
    known = {name.lower(): colour for name, colour in KNOWN.items()}
    rest = [colour for colour in PALETTE if colour not in {known.get(n.lower()) for n in named}]
    found, others = {}, 0
    for name in named:
        if name.lower() in known:
            found[name] = known[name.lower()]
        else:
            found[name] = rest[others % len(rest)]
            others += 1
    return found


def plots(summary: Summary) -> dict[str, Figure]:
    """Draw what there is to draw; a file's name -> its figure. Nothing of pyplot is touched."""
    figures: dict[str, Figure] = {}
    if summary.sentiment_scores:
        if summary.sentiment_kind != "regression":
            figures["sentiment"] = _sentiment(summary)
        figures["sentiment_scores"] = _sentiment_scores(summary)
    if summary.entity_scores:
        counts = {name: sum(bins) for name, bins in summary.entity_scores.items()}
        ordered = dict(sorted(counts.items(), key=lambda item: -item[1]))
        figures["entities"] = _bars("Entities by type", ordered, colours(summary.entity_scores))
        figures["entity_scores"] = _entity_scores(summary.entity_scores)
    if summary.token_bins:
        figures["tokens"] = _tokens(summary.token_bins)
    if summary.errors:
        colour = dict.fromkeys(summary.errors, ERROR)
        figures["errors"] = _bars("Rows that could not be scored", summary.errors, colour)
    return figures


def svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an `<svg>` for a page: its ink is the page's, its text is text."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
    }
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    file = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{prefix}-", drawing)
    drawing = re.sub(r"font: ([^;\"]*?)(?:'[^\"]*|sans-serif[^;\"]*)", r"font: \1inherit", drawing)
    drawing = drawing.replace(INK, "currentColor").replace(LINE, "var(--line)")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", drawing, count=1)


def _axes(title: str, height: float) -> tuple[Figure, "Axes"]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _style(axes)
    _title(figure, title)
    return figure, axes


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)


def _style(axes: "Axes") -> None:
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def _label(text: str) -> str:
    """Return a label as matplotlib is to show it: short, on one line, no formula."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return (text if len(text) <= 22 else text[:21] + "…").replace("$", r"\$")


def _bars(
    title: str, counts: Mapping[str, int], colour: Mapping[str, str], of: int | None = None
) -> Figure:
    """Draw one bar for each name, with its number, and its share of `of` or of the sum."""
    shown = dict(list(counts.items())[:MOST_BARS])
    if len(counts) > len(shown):
        title = f"{title}: the first {len(shown)} of {len(counts)}"
    figure, axes = _axes(title, 0.75 + 0.36 * len(shown))
    values, places = list(shown.values()), list(range(len(shown)))
    axes.barh(places, values, height=0.62, color=[colour[name] for name in shown])
    axes.set_yticks(places, [_label(name) for name in shown])
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    most, whole = max([*values, 1]), max(of or sum(counts.values()), 1)
    axes.set_xlim(0, most * 1.38)
    for place, value in zip(places, values, strict=True):
        note = f"{value:,}  ({value / whole:.1%})"
        axes.text(value + most * 0.02, place, note, va="center", fontsize=9, color=INK)
    return figure


def _sentiment(summary: Summary) -> Figure:
    labels = summary.labels
    colour = colours(sorted(labels))
    if summary.sentiment_kind == "multi":
        scored = summary.rows - summary.failed
        return _bars("Rows by label (score 0.5 or more)", labels, colour, of=scored)
    return _bars("Sentiment of the rows", labels, colour)


def _sentiment_scores(summary: Summary) -> Figure:
    scores = summary.sentiment_scores or {}
    low, high = summary.sentiment_range
    regression = summary.sentiment_kind == "regression"
    if summary.sentiment_kind == "multi":
        return _small_multiples("Score of each label, all rows", scores)
    title = "Values of the regression" if regression else "Score of the label that was given"
    figure, axes = _axes(title, 2.5)
    _histogram(axes, scores, low, high)
    axes.set_xlabel("value" if regression else "score", fontsize=9)
    axes.set_ylabel("rows", fontsize=9)
    if len(scores) > 1:
        axes.legend(
            [_label(name) for name in scores],
            loc="upper left",
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )
    return figure


def _entity_scores(scores: Mapping[str, tuple[int, ...]]) -> Figure:
    return _small_multiples("Score of the entities, by type", scores)


def _small_multiples(title: str, scores: Mapping[str, tuple[int, ...]]) -> Figure:
    """Draw one histogram for each name, one above the other, on one scale of scores."""
    shown = sorted(scores, key=lambda name: -sum(scores[name]))[:8]
    figure = Figure(
        figsize=(WIDTH, 0.8 + 0.72 * len(shown)), layout="constrained", facecolor="white"
    )
    _title(figure, title)
    colour = colours(sorted(scores))
    for place, name in enumerate(shown, start=1):
        axes = figure.add_subplot(len(shown), 1, place)
        _style(axes)
        _histogram(axes, {name: scores[name]}, 0.0, 1.0, colour)
        axes.set_ylabel(_label(name), rotation=0, ha="right", va="center", fontsize=9)
        axes.yaxis.set_ticks([])
        if place < len(shown):
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("score", fontsize=9)
    return figure


def _histogram(
    axes: "Axes",
    scores: Mapping[str, Sequence[int]],
    low: float,
    high: float,
    colour: Mapping[str, str] | None = None,
) -> None:
    """Draw bins of scores, the labels one upon the other."""
    colour = colour or colours(sorted(scores))
    width = (high - low) / BINS
    begins = [low + width * n for n in range(BINS)]
    below = [0] * BINS
    for name, bins in scores.items():
        axes.bar(begins, bins, width * 0.9, bottom=below, align="edge", color=colour[name])
        below = [a + b for a, b in zip(below, bins, strict=True)]
    axes.set_xlim(low, high)
    axes.set_ylim(0, max(below) * 1.25 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    if (low, high) == (0.0, 1.0):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _tokens(bins: Mapping[int, int]) -> Figure:
    figure, axes = _axes("Tokens in a text", 2.5)
    first, last = min(bins), max(bins)
    places = list(range(first, last + 1))
    axes.bar(places, [bins.get(n, 0) for n in places], 0.9, align="edge", color=PLAIN)
    edges = [*places, last + 1]
    axes.set_xticks(edges, [f"{2**n}" if n < 10 else f"{2 ** (n - 10)}k" for n in edges])
    axes.tick_params(axis="x", labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_xlabel("tokens, each bar up to twice the one before", fontsize=9)
    axes.set_ylabel("rows", fontsize=9)
    return figure
