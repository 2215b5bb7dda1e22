"""Figures of models: spans from tags, exact-match entity scores, sentiment scores."""

import pandas as pd
import pytest

from lakescore.errors import ConfigError, DataError
from lakescore.evaluation import (
    Figures,
    compare_entities,
    compare_sentiment,
    figures,
    score_entities,
    score_sentiment,
)
from lakescore.labelled import (
    ColumnsConfig,
    LabelledText,
    TaggedText,
    check_columns,
    read_labelled,
    read_tagged,
    short_name,
    spans_of,
    word_offsets,
)


def test_word_offsets_are_those_of_the_tokens_joined_by_spaces() -> None:
    tokens = ["Anna", "-", "lena", "😀", "Ørsted"]
    starts, ends = word_offsets(tokens)
    text = " ".join(tokens)
    assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == tokens


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["O", "O", "O"], []),
        (["B-PER", "I-PER", "O"], [(0, 3, "PER")]),
        (["B-PER", "B-PER", "I-PER"], [(0, 1, "PER"), (2, 5, "PER")]),
        (["O", "I-LOC", "I-LOC"], [(2, 5, "LOC")]),
        (["B-PER", "I-ORG", "I-ORG"], [(0, 1, "PER"), (2, 5, "ORG")]),
        (["B-PER", "O", "I-PER"], [(0, 1, "PER"), (4, 5, "PER")]),
    ],
    ids=["none", "inside", "adjacent", "no-begin", "type-changes", "interrupted"],
)
def test_tags_become_spans_as_transformers_groups_them(
    tags: list[str], spans: list[tuple[int, int, str]]
) -> None:
    assert spans_of(tags, *word_offsets(["a", "b", "c"])) == spans


def test_no_gold_and_nothing_found_gives_zeros_and_no_division_by_zero() -> None:
    assert figures(correct=0, gold=0, found=0) == Figures(0.0, 0.0, 0.0, 0, 0)
    assert score_entities([], []).per_type == {}
    assert score_sentiment([], []).accuracy == 0.0


def test_a_span_counts_only_with_its_exact_offsets_and_type() -> None:
    gold = [[(0, 4, "PER"), (10, 16, "LOC"), (20, 24, "ORG")], [(0, 3, "PER")]]
    found = [[(0, 4, "PER"), (10, 15, "LOC"), (20, 24, "LOC")], []]
    scores = score_entities(gold, found)
    assert scores.micro == Figures(1 / 3, 1 / 4, pytest.approx(2 / 7), 4, 3)
    assert scores.per_type == {
        "LOC": Figures(0.0, 0.0, 0.0, 1, 2),
        "ORG": Figures(0.0, 0.0, 0.0, 1, 0),
        "PER": Figures(1.0, 0.5, 2 / 3, 2, 1),
    }


def test_types_that_do_not_count_are_left_out_on_both_sides() -> None:
    gold = [[(0, 4, "PER"), (5, 9, "MISC")]]
    found = [[(0, 4, "PER"), (5, 9, "MISC"), (12, 14, "MISC")]]
    scores = score_entities(gold, found, types=["PER", "ORG"])
    assert scores.as_metrics() == {
        "micro_precision": 1.0,
        "micro_recall": 1.0,
        "micro_f1": 1.0,
        "PER_precision": 1.0,
        "PER_recall": 1.0,
        "PER_f1": 1.0,
    }


def test_a_span_found_twice_counts_once() -> None:
    scores = score_entities([[(0, 4, "PER")]], [[(0, 4, "PER"), (0, 4, "PER")]])
    assert scores.micro == Figures(1.0, 1.0, 1.0, 1, 1)


def test_sentiment_accuracy_and_macro_f1_with_a_failed_row_as_wrong() -> None:
    scores = score_sentiment(["pos", "pos", "neg", "neg"], ["pos", None, "neg", "pos"])
    assert scores.accuracy == 0.5
    assert scores.per_label == {
        "neg": Figures(1.0, 0.5, 2 / 3, 2, 1),
        "pos": Figures(0.5, 0.5, 0.5, 2, 2),
    }
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.as_metrics()["pos_f1"] == 0.5


SCORED = pd.DataFrame(
    {
        "gold_tokens": [["Anna", "in", "Oslo"], ["Oslo"]],
        "gold": [["B-PER", "O", "B-LOC"], ["B-LOC"]],
        "entities": [
            [
                {"start": 0, "end": 4, "entity_group": "PER"},
                {"start": 8, "end": 12, "entity_group": "ORG"},
            ],
            None,
        ],
    }
)
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")


def test_scored_rows_are_compared_with_their_tags_and_a_failed_row_finds_nothing() -> None:
    scores = compare_entities(SCORED, "t", LABELS, ColumnsConfig(), None)
    assert scores.micro == Figures(1 / 2, 1 / 3, 2 / 5, 3, 2)


def test_types_that_exist_nowhere_are_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"PERS: neither.*there are LOC, ORG, PER"):
        compare_entities(SCORED, "t", LABELS, ColumnsConfig(), ["PERS"])


def test_a_tags_column_with_none_of_the_models_types_is_refused() -> None:
    frame = SCORED.assign(gold=[["B-per", "O", "B-geo"], ["B-geo"]])
    with pytest.raises(DataError, match=r"column tags: its types are geo, per.*another tags"):
        compare_entities(frame, "t", LABELS, ColumnsConfig(), None)


def test_scored_sentiment_is_compared_with_labels_by_name_or_index() -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", "b", "c"],
            "gold": [1, 0, 1],
            "sentiment": [{"label": "positive"}, {"label": "positive"}, None],
        }
    )
    by_index = compare_sentiment(frame, "t", ("negative", "positive"), ColumnsConfig())
    named = frame.assign(gold=["positive", "negative", "positive"])
    by_name = compare_sentiment(named, "t", ("negative", "positive"), ColumnsConfig())
    assert by_index == by_name
    assert by_index.accuracy == 1 / 3


def test_tagged_rows_are_read_as_they_are() -> None:
    frame = pd.DataFrame({"w": [["Hi", "Bo"]], "t": [["O", "B-PER"]]})
    rows = read_tagged(frame, tokens="w", tags="t", table="t")
    assert rows == [TaggedText(("Hi", "Bo"), ("O", "B-PER"))]
    assert rows[0].text == "Hi Bo"


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [(["a", "b"], ["O"]), (None, ["O"]), (["a"], None), (["a", None], ["O", "O"])],
    ids=["lengths", "no-tokens", "no-tags", "null-token"],
)
def test_a_row_without_one_tag_per_token_is_refused_by_number(
    tokens: list[str] | None, tags: list[str] | None
) -> None:
    frame = pd.DataFrame({"tokens": [["x"], tokens], "tags": [["O"], tags]})
    with pytest.raises(DataError, match=r"^t: row 1: columns tokens and tags.*repair or drop"):
        read_tagged(frame, tokens="tokens", tags="tags", table="t")


def test_tags_that_are_not_bio_are_refused_without_being_shown() -> None:
    frame = pd.DataFrame({"tokens": [["x", "y"]], "tags": [["S-PER", "O"]]})
    with pytest.raises(DataError, match=r"^t: column tags: 1 of its values are not BIO tags; w"):
        read_tagged(frame, tokens="tokens", tags="tags", table="t")


def test_labels_are_read_by_name_or_index_and_others_refused() -> None:
    def read(label: object) -> list[LabelledText]:
        frame = pd.DataFrame({"text": ["fine"], "label": [label]})
        return read_labelled(
            frame, text="text", label="label", labels=("negative", "positive"), table="t"
        )

    assert read(1) == read("positive") == [LabelledText("fine", 1)]
    for wrong in (2, "a whole text", None, ["positive"]):
        with pytest.raises(DataError, match=r"^t: column label: 1 rows have none of the labels ne"):
            read(wrong)


def test_a_null_text_in_a_labelled_set_is_refused() -> None:
    frame = pd.DataFrame({"text": [None], "label": [1]})
    with pytest.raises(DataError, match=r"^t: column text: has nulls"):
        read_labelled(frame, text="text", label="label", labels=("a", "b"), table="t")


def test_a_missing_column_or_one_of_another_type_is_named() -> None:
    types = {"tokens": "array<string>", "tags": "array<string>", "ids": "array<int>"}
    check_columns(types, "entities", ColumnsConfig(), "t")
    with pytest.raises(DataError, match=r"^t: no column 'tags4'; there are tokens, tags, ids"):
        check_columns(types, "entities", ColumnsConfig(tags="tags4"), "t")
    with pytest.raises(DataError, match=r"^t: column ids is array<int>, not array<string>; name"):
        check_columns(types, "entities", ColumnsConfig(tags="ids"), "t")
    with pytest.raises(DataError, match=r"^t: no column 'text'"):
        check_columns(types, "sentiment", ColumnsConfig(), "t")


def test_a_path_is_named_by_its_last_two_parts_and_a_table_by_its_name() -> None:
    assert short_name("../open/btc/valid.parquet") == "btc/valid"
    assert short_name("main.nlp.labelled") == "main.nlp.labelled"
