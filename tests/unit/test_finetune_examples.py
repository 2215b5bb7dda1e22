"""What fine-tuning learns from: examples and their augmentation, a trimmed vocabulary."""

import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer

from lakescore.errors import DataError, ModelError
from lakescore.finetune import examples, vocabulary
from lakescore.finetune.examples import IGNORED, Ends, Example
from lakescore.labelled import UNLABELLED, LabelledText, TaggedText
from tests.tiny_models import (
    CORPUS,
    ENTITY_LABELS,
    bpe_tokenizer,
    wordpiece_tokenizer,
)

ROW = TaggedText(("Anna", "does", "n't", "like", "Oslo", "."), ("B-PER", *"OOO", "B-LOC", "O"))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Examples


def test_tokens_keep_single_spaces_or_get_those_that_a_person_would_type() -> None:
    assert examples.join_tokens(ROW.tokens, natural=False) == (
        ROW.text,
        [0, 5, 10, 14, 19, 24],
    )
    tokens = ("Stop", ",", "(", "Bo", ")", "is", "@", "home", "!")
    text, starts = examples.join_tokens(tokens, natural=True)
    assert text == "Stop, (Bo) is @home!"
    assert [text[at : at + len(each)] for at, each in zip(starts, tokens, strict=True)] == [*tokens]


def test_each_piece_of_a_token_is_labelled_and_only_the_first_begins() -> None:
    tags = examples.piece_tags(["B-PER", "I-PER", "O"], [0, 5, 10], np.array([0, 2, 5, 7, 10, 11]))
    assert tags == ["B-PER", "I-PER", "I-PER", "I-PER", "O", "O"]


def test_a_tokenizer_that_counts_spaces_to_words_moves_no_label() -> None:
    row = TaggedText(("I", "met", "Bob", "in", "Paris"), ("O", "O", "B-PER", "O", "B-LOC"))
    tokenizer = bpe_tokenizer(trim_offsets=False)
    [example] = examples.tagged_examples([row], tokenizer, ENTITY_LABELS, natural=[False])
    encoding = tokenizer.encode(row.text, add_special_tokens=False)
    begun = {
        row.text[start:].split()[0]: ENTITY_LABELS[label]
        for (start, _), label in zip(encoding.offsets, example.labels.tolist(), strict=True)
        if start == 0 or row.text[start] == " "
    }
    assert begun == {"I": "O", "met": "O", "Bob": "B-PER", "in": "O", "Paris": "B-LOC"}


@pytest.mark.parametrize("natural", [False, True])
def test_the_labels_of_a_row_are_the_same_whatever_its_spacing(natural: bool) -> None:
    tokenizer = wordpiece_tokenizer()
    [example] = examples.tagged_examples([ROW], tokenizer, ENTITY_LABELS, natural=[natural])
    text, starts = examples.join_tokens(ROW.tokens, natural=natural)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    assert example.ids.tolist() == encoding.ids
    named = [(encoding.offsets[i][0], ENTITY_LABELS[n]) for i, n in enumerate(example.labels)]
    anna, oslo = starts[0], starts[4]
    assert [each for each in named if each[1].startswith("B-")] == [
        (anna, "B-PER"),
        (oslo, "B-LOC"),
    ]
    inside = {kind for at, kind in named if kind.startswith("I-")}
    assert inside == {"I-PER", "I-LOC"}


def test_a_tag_that_the_model_lacks_is_refused() -> None:
    row = TaggedText(("x",), ("B-ANIMAL",))
    with pytest.raises(DataError, match="tag 'B-ANIMAL' is not among the labels O, B-PER"):
        examples.tagged_examples([row], wordpiece_tokenizer(), ENTITY_LABELS, natural=[False])


def test_a_swapped_mention_is_another_of_its_type() -> None:
    other = TaggedText(("New", "York"), ("B-LOC", "I-LOC"))
    pool = examples.mentions([ROW, other])
    assert pool == {"PER": [("Anna",)], "LOC": [("Oslo",), ("New", "York")]}
    swapped = {examples.swap_mentions(ROW, pool, np.random.default_rng(i), 1.0) for i in range(9)}
    tokens = ("Anna", "does", "n't", "like", "New", "York", ".")
    assert swapped == {
        ROW,
        TaggedText(tokens, ("B-PER", "O", "O", "O", "B-LOC", "I-LOC", "O")),
    }
    assert examples.swap_mentions(ROW, pool, rng(), 0.0) == ROW


@pytest.mark.parametrize(("weight", "counts"), [(2.0, {2: 10}), (1.5, {1: 5, 2: 5}), (0.3, {1: 3})])
def test_a_weight_is_how_often_an_epoch_sees_a_row(weight: float, counts: dict[int, int]) -> None:
    seen = Counter(examples.sample(10, weight, rng()).tolist())
    assert Counter(seen.values()) == counts


def test_chained_examples_hold_every_piece_once_and_fit() -> None:
    pieces = [Example(np.full(9, i), np.full(9, i)) for i in range(200)]
    chained = examples.chain(pieces, 0.5, shortest=64, longest=100, rng=rng())
    held = np.sort(np.concatenate([each.ids for each in chained]))
    assert held.tolist() == [i for i in range(200) for _ in range(9)]
    assert 60 < max(len(each.ids) for each in chained) <= 100
    assert all((each.ids == each.labels).all() for each in chained)


def test_a_long_example_is_cropped_and_gets_its_special_tokens() -> None:
    ends = Ends((101,), (102,))
    long = Example(np.arange(1000), np.arange(1000))
    done = examples.finish(long, ends, per_piece=True, shortest=64, longest=128, rng=rng())
    assert 64 <= len(done.ids) - 2 <= 126
    assert (done.ids[0], done.ids[-1], done.labels[0], done.labels[-1]) == (101, 102, -100, -100)
    assert done.ids[1:-1].tolist() == done.labels[1:-1].tolist()
    assert (np.diff(done.ids[1:-1]) == 1).all()


def test_a_text_of_one_piece_keeps_one_label() -> None:
    one = Example(np.array([7]), np.array([1]))
    done = examples.finish(
        one, Ends((101,), (102,)), per_piece=False, shortest=64, longest=128, rng=rng()
    )
    assert (done.ids.tolist(), done.labels.tolist()) == ([101, 7, 102], [1])


def test_unlabelled_rows_are_seen_by_a_teacher_only() -> None:
    row = LabelledText("Anna likes Oslo", UNLABELLED)
    [whole] = examples.labelled_examples([row], wordpiece_tokenizer())
    [each] = examples.labelled_examples([row], wordpiece_tokenizer(), per_piece=True)
    assert whole.labels.tolist() == [UNLABELLED]
    assert each.labels.tolist() == [UNLABELLED] * len(each.ids)
    assert IGNORED != UNLABELLED


def test_batches_hold_each_example_once_within_the_budget() -> None:
    lengths = rng().integers(1, 60, 500)
    batches = examples.batches(lengths, 256, rng())
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert max(len(each) * lengths[each].max() for each in batches) <= 256


# Vocabulary


def trimmed(entries: int) -> tuple[Tokenizer, Tokenizer, np.ndarray]:
    full = wordpiece_tokenizer()
    state = vocabulary.plain_tokenizer(full.to_str())
    kept = vocabulary.choose_entries(
        state["model"]["vocab"],
        vocabulary.special_tokens(state),
        vocabulary.count_entries(full, CORPUS),
        entries,
        prefix="##",
    )
    return full, Tokenizer.from_str(json.dumps(vocabulary.trim(state, kept))), kept


def test_trimming_keeps_the_pieces_of_kept_words_and_never_loses_a_letter() -> None:
    full, small, kept = trimmed(500)
    assert small.get_vocab_size() == len(kept) == 500
    same = 0
    for text in CORPUS:
        before, after = full.encode(text), small.encode(text)
        assert "".join(after.tokens).replace("##", "") == "".join(before.tokens).replace("##", "")
        for start, end in set(before.offsets) & set(after.offsets):
            old = before.tokens[before.offsets.index((start, end))]
            assert after.tokens[after.offsets.index((start, end))] == old
            same += 1
        pieces = [before.ids[i] for i, token in enumerate(before.tokens) if token[:2] != "##"]
        assert len(after.ids) >= len(before.ids) > len(pieces) / 2
    assert same > 100


def test_a_text_of_kept_entries_is_tokenised_as_before() -> None:
    full, small, kept = trimmed(500)
    names = {index: piece for piece, index in full.get_vocab().items()}
    words = [names[i] for i in kept.tolist() if names[i].isalpha() and names[i].isascii()]
    assert len(words) > 50
    for word in words:
        assert small.encode(word).tokens == full.encode(word).tokens


def test_kept_entries_are_numbered_in_the_old_order_special_tokens_with_them() -> None:
    full, small, kept = trimmed(500)
    names = {index: piece for piece, index in full.get_vocab().items()}
    numbers = small.get_vocab()
    assert [numbers[names[old]] for old in kept.tolist()] == list(range(500))
    assert small.encode("a b").tokens == ["[CLS]", "a", "b", "[SEP]"]


def test_too_few_entries_are_refused_with_the_least_possible() -> None:
    with pytest.raises(ModelError, match=r"vocabulary.entries is 20, .*set at least that many"):
        trimmed(20)


def test_a_tokenizer_that_is_not_wordpiece_is_not_trimmed() -> None:
    with pytest.raises(ModelError, match="tokenizer is BPE; only a WordPiece"):
        vocabulary.trim({"model": {"type": "BPE"}}, np.arange(3))
