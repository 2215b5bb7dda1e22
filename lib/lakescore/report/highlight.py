"""Texts with their spans marked, as HTML for a notebook's cell."""

from collections.abc import Iterable

from markupsafe import Markup, escape

from lakescore.report.page import visible
from lakescore.report.plots import colours

_MARK = Markup(
    '<mark style="color: inherit; padding: .1em .25em; border-radius: .25em; '
    'background: {colour}33; border-bottom: 2px solid {colour}">{word}'
    '<small style="font-weight: 600; margin-left: .4em">{kind}</small></mark>'
)
_TEXT = Markup(
    '<p dir="auto" style="font: 15px/1.9 system-ui, sans-serif; white-space: pre-wrap">{text}</p>'
)


def highlighted(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """Return a paragraph of HTML: the text, with each span (start, end, type) marked.

    Offsets count characters, the end is not included. A span that overlaps one before it, or lies
    outside of the text, is left out.
    """
    spans = sorted(spans)
    colour_of = colours(sorted({kind for _, _, kind in spans}))
    at, parts = 0, []
    for start, end, kind in spans:
        if at <= start < end <= len(text):
            word = escape(visible(text[start:end]))
            mark = _MARK.format(colour=colour_of[kind], word=word, kind=visible(kind))
            parts += [escape(visible(text[at:start])), mark]
            at = end
    return str(_TEXT.format(text=Markup("").join([*parts, escape(visible(text[at:]))])))
