"""The report's page and figures, made of summaries written by hand: no Spark, no MLflow."""

import html
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from lakescore.report import Summary, plots, render
from lakescore.report.page import pieces, visible
from lakescore.report.plots import colours
from lakescore.report.summary import Entity, FailedRow, Sample
from lakescore.tracking import RunFigures

HOSTILE = "<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} </p></style>"
BINS = (0,) * 18 + (3, 9)


def sample(text: str, *words: str, kind: str = "named", key: str = "1") -> Sample:
    """A sample with these words of its text as entities."""
    found = []
    for word in words:
        start = text.index(word, found[-1].end if found else 0)
        found.append(Entity("PER", 0.98765, start, start + len(word)))
    return Sample(kind, key, text, 12, tuple(found), (("negative", 0.9),))


def summary(*samples: Sample, **changes: object) -> Summary:
    """A small table's summary."""
    whole = Summary(
        rows=14,
        failed=2,
        tokens=345,
        longest=99,
        first_scored="2026-01-02 03:04:05",
        last_scored="2026-01-02 03:04:05",
        run_id="r1",
        runs={"r1": 14},
        models={"entities": {"models:/ner/3": 14}},
        errors={"null_text": 2},
        token_bins={3: 8, 6: 4},
        entity_scores={"LOC": BINS, "PER": BINS},
        sentiment_scores={"negative": BINS, "positive": (0,) * 20},
        names={"PER": (("Ana Lima", 3), ("Ren", 1))},
        samples=samples,
        failed_rows=(FailedRow("key-7", "null_text", "the text is null"),),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def page(whole: Summary, **options: bool) -> str:
    """The page about a summary."""
    return render(whole, plots(whole), None, table="main.demo.scored", **options)


class Texts(HTMLParser):
    """Collects what a browser would show of the texts: the words of `p` and of `mark`."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.marks: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("p", "mark", "article"):
            self._open.append(tag)
        if tag == "p":
            self.paragraphs.append("")
        if tag == "mark":
            self.marks.append(("", dict(attrs)["title"] or ""))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if "p" in self._open and "article" in self._open:
            self.paragraphs[-1] += data
        if self._open and self._open[-1] == "mark":
            self.marks[-1] = (self.marks[-1][0] + data, self.marks[-1][1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ana Lima met Ren in Faro.", ["Ana Lima", "Ren", "Faro"]),
        ("👩‍👩‍👧‍👦 Ana 🇧🇷 Lima e\u0301 Žofie", ["Ana", "Lima", "Žofie"]),
        ("תודה לנועה בן-חיים מחיפה!", ["נועה בן-חיים", "חיפה"]),
        ("شكراً ليلى حداد في بيروت", ["ليلى حداد", "بيروت"]),
        ("王芳在成都。", ["王芳", "成都"]),
        (HOSTILE, ["<script>", "</p>"]),
        ("line\nAna\n\n\tend ", ["Ana"]),
    ],
    ids=["plain", "emoji", "hebrew", "arabic", "chinese", "hostile", "lines"],
)
def test_the_text_is_shown_as_it_is_with_its_entities_marked(text: str, words: list[str]) -> None:
    one = sample(text, *words)
    shown = Texts(page(summary(one)))
    assert shown.paragraphs[0] == text
    assert shown.marks == [
        (word, f"PER · 0.9877 · characters {entity.start} to {entity.end}")
        for word, entity in zip(words, one.entities, strict=True)
    ]


def test_nothing_of_a_row_becomes_markup() -> None:
    one = replace(sample(HOSTILE, key=HOSTILE), sentiment=((HOSTILE, 0.5),))
    whole = summary(
        one,
        names={HOSTILE: ((HOSTILE, 1),)},
        errors={HOSTILE: 2},
        entity_scores={HOSTILE: BINS},
        sentiment_scores={HOSTILE: BINS},
        models={HOSTILE: {HOSTILE: 1}},
        failed_rows=(FailedRow(HOSTILE, HOSTILE, HOSTILE),),
    )
    document = page(whole)
    assert "script" not in Texts(document).tags
    assert document.count("<style") == document.count("</style>") == 1 + len(plots(whole))
    assert "{{ 7 * 7 }}" in document


def test_the_page_needs_nothing_from_elsewhere() -> None:
    document = page(summary(sample("Ana", "Ana")))
    assert re.findall(r"<(?:script|link|img|iframe|object|image)\b", document) == []
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", document) == []
    assert re.findall(r"url\((?!#)|@import", document) == []
    assert "default-src 'none'" in document


def test_ids_in_the_page_are_unique() -> None:
    found = re.findall(r'\sid="([^"]*)"', page(summary(sample("Ana", "Ana"))))
    assert len(found) == len(set(found))
    references = re.findall(r"(?:href=\"#|url\(#)([^\")]*)", page(summary()))
    assert set(references) <= set(re.findall(r'\sid="([^"]*)"', page(summary())))


def test_weird_unicode_is_shown_by_signs_one_for_one() -> None:
    text = "a\x00b\x1bc\x7fd\x85e\ud800f\ufffeg\u202eh\u200bi"
    assert visible(text) == "a␀b␛c␡d\ufffde\ufffdf\ufffeg\u202eh\u200bi"
    document = page(summary(sample(text, "f\ufffeg", key="\udfff")))
    assert "f\ufffeg</mark>" in document.encode("utf-8").decode("utf-8")


def test_a_long_text_is_shown_around_its_entities_to_the_end() -> None:
    words = [f"Name{number:03}" for number in range(40)]
    text = " ".join(f"{word} " + "and so on " * 60 for word in words) + "Zoë"
    one = sample(text, *words, "Zoë")
    found = pieces(one)
    at = 0
    for piece in found:
        if piece.left_out:
            at += piece.left_out
        else:
            assert text[at : at + len(piece.text)] == piece.text
            at += len(piece.text)
    assert at == len(text)
    shown = [piece.text for piece in found if piece.entity]
    assert (shown[0], shown[-1]) == ("Name000", "Zoë")
    assert 5 <= len(shown) <= 12
    assert sum(len(piece.text) for piece in found) < 3000
    assert all(piece.left_out == 0 or piece.left_out > 120 for piece in found)


def test_a_long_text_without_a_space_or_an_entity_is_cut() -> None:
    found = pieces(Sample("long", "1", "x" * 50_000, 9))
    assert [(len(piece.text), piece.left_out) for piece in found] == [(180, 0), (0, 49_820)]
    assert pieces(Sample("long", "1", "", 0)) == []


def test_entities_that_overlap_or_lie_outside_are_left_out() -> None:
    spans = [(0, 3), (2, 6), (6, 6), (9, 40), (-2, 1), (4, 8)]
    one = Sample("plain", "1", "Ana met Ren", 3, tuple(Entity("PER", 0.5, *span) for span in spans))
    shown = [(piece.text, piece.entity is not None) for piece in pieces(one)]
    assert shown == [("Ana", True), (" ", False), ("met ", True), ("Ren", False)]


def test_without_texts_no_text_name_or_key_is_in_the_page() -> None:
    document = page(summary(sample("Ana Lima is here", "Ana Lima", key="key-8")), with_texts=False)
    assert [word for word in ("Ana", "Ren", "key-7", "key-8") if word in document] == []
    assert "This copy is without texts" in document
    assert "null_text" in document


def test_figures_hold_no_word_of_a_text() -> None:
    whole = summary(sample("Ana Lima is here", "Ana Lima"))
    bare = replace(whole, samples=(), names={}, failed_rows=())
    for one, other in zip(plots(whole).values(), plots(bare).values(), strict=True):
        assert [t.get_text() for t in one.findobj(lambda a: hasattr(a, "get_text"))] == [
            t.get_text() for t in other.findobj(lambda a: hasattr(a, "get_text"))
        ]


@pytest.mark.parametrize(
    ("changes", "figures"),
    [
        ({}, "entities entity_scores errors sentiment sentiment_scores tokens"),
        ({"sentiment_scores": None}, "entities entity_scores errors tokens"),
        ({"entity_scores": None, "names": {}}, "errors sentiment sentiment_scores tokens"),
        (
            {"sentiment_kind": "multi", "sentiment_scores": {"toxic": BINS, "rude": BINS}},
            "entities entity_scores errors sentiment sentiment_scores tokens",
        ),
        (
            {
                "sentiment_kind": "regression",
                "sentiment_scores": {"stars": BINS},
                "sentiment_range": (-3.5, 8.0),
            },
            "entities entity_scores errors sentiment_scores tokens",
        ),
        (
            {
                "failed": 14,
                "errors": {"null_text": 13, "too_long": 1},
                "token_bins": {},
                "entity_scores": {},
                "sentiment_scores": {},
                "names": {},
            },
            "errors",
        ),
        (
            {"has_text": False, "samples": ()},
            "entities entity_scores errors sentiment sentiment_scores tokens",
        ),
    ],
    ids=["both", "entities", "sentiment", "multi", "regression", "all failed", "no text"],
)
def test_every_kind_of_table_has_its_page(changes: dict[str, object], figures: str) -> None:
    whole = (
        summary(sample("Ana", "Ana"), **changes) if "samples" not in changes else summary(**changes)
    )
    assert sorted(plots(whole)) == figures.split()
    assert "main.demo.scored" in page(whole)


def test_an_empty_table_has_a_page() -> None:
    whole = Summary(rows=0, entity_scores={}, sentiment_scores={})
    assert plots(whole) == {}
    assert "The table has no rows yet." in page(whole)


def test_many_types_with_odd_names_are_drawn_and_told_apart() -> None:
    names = ["人名", "$x$_^2", "a" * 60, "\x00", "Ünïcode", "<b>", *(f"T{n}" for n in range(9))]
    whole = summary(entity_scores=dict.fromkeys(names, BINS), names={})
    document = page(whole)
    assert "the first 12 of 15" in document
    assert len(set(colours(names[:8]).values())) == 8
    assert "人名" in html.unescape(document)


def test_the_runs_figures_are_shown() -> None:
    run = RunFigures(
        run_id="r1",
        name="score",
        status="FINISHED",
        started=datetime(2026, 1, 2, tzinfo=UTC),
        ended=None,
        params={"source.table": "main.demo.messages", "source.version": "5", "dtype": "<auto>"},
        metrics={"seconds": 61.25, "rows_per_second": 39.2, "tokens_per_second": 2939.3},
    )
    whole = summary(runs={"r0": 4, "r1": 10})
    document = render(whole, {}, run, table="t")
    shown = re.sub(r"<[^>]*>", "|", document[document.index("<h1>") :])
    for figure in ("61.2", "39.2", "2,939 tokens/s", "main.demo.messages, version 5", "r1 (the "):
        assert figure in shown
    assert "&lt;auto&gt;" in document


def test_drawing_leaves_pyplot_alone() -> None:
    import sys

    before = "matplotlib.pyplot" in sys.modules
    page(summary())
    assert ("matplotlib.pyplot" in sys.modules) == before
