"""The demo's messages: the same for a seed, and as varied as real ones."""

import hashlib
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest

from demo.messages import Message, message, messages

ROWS = list(messages(2400, seed=7))
TEXTS = [row.text for row in ROWS if row.text and row.text.strip()]


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters, by the first word of their Unicode names."""
    return {unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()}


def test_a_seed_gives_the_same_rows_in_every_version_of_python() -> None:
    digest = hashlib.sha256(repr([tuple(row) for row in ROWS[:300]]).encode()).hexdigest()
    assert digest == "9dc8f61b07d08c519333ec5f44006c08738bac8751f030405a51298a0264d84f"


def test_another_seed_gives_other_texts() -> None:
    others = {row.text for row in messages(2400, seed=8)}
    assert len(others & set(TEXTS)) < 300


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    assert list(messages(50, seed=7)) == ROWS[:50]
    assert message(2000, seed=7) == ROWS[1999]


def test_ids_count_up_and_time_goes_on() -> None:
    assert [row.id for row in ROWS] == list(range(1, 2401))
    assert all(one.created_at < other.created_at for one, other in pairwise(ROWS))


def test_there_are_nulls_blanks_and_exact_duplicates() -> None:
    nulls = [row for row in ROWS if row.text is None]
    blanks = [row for row in ROWS if row.text is not None and not row.text.strip()]
    long_twice = [
        text for text, times in Counter(TEXTS).items() if times > 1 and len(text.split()) > 15
    ]
    assert (10 < len(nulls) < 60, 5 < len(blanks) < 40, 10 < len(long_twice)) == (True, True, True)


def test_texts_differ() -> None:
    sentences = Counter(
        sentence
        for text in TEXTS
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", text)
        if len(sentence.split()) > 4
    )
    assert len(set(TEXTS)) > 2200
    assert len(sentences) > 7000
    assert max(sentences.values()) < 60


def test_lengths_go_from_two_words_to_thousands() -> None:
    lengths = sorted(len(text.split()) for text in TEXTS)
    assert lengths[20] <= 2
    assert 25 < lengths[len(lengths) // 2] < 60
    assert [1300 < length < 4000 for length in lengths[-9:]] == [True] * 9
    assert lengths[-10] < 500


def test_long_texts_name_people_up_to_the_end() -> None:
    for text in sorted(TEXTS, key=len)[-9:]:
        end = text[-400:]
        assert len(re.findall(r"\b[A-ZÀ-Ž][\w'-]+ [A-ZÀ-Ž][\w'-]+", end)) >= 2


@pytest.mark.parametrize(
    "script", "ARABIC HEBREW CJK HIRAGANA HANGUL CYRILLIC GREEK DEVANAGARI THAI LATIN".split()
)
def test_each_script_is_there(script: str) -> None:
    assert sum(script in scripts(text) for text in TEXTS) >= 5


def test_accents_are_there_composed_and_decomposed_and_emoji_too() -> None:
    decomposed = [text for text in TEXTS if unicodedata.normalize("NFC", text) != text]
    composed = [text for text in TEXTS if unicodedata.normalize("NFD", text) != text]
    emoji = [text for text in TEXTS if any(ord(letter) > 0x1F000 for letter in text)]
    assert min(len(decomposed), len(composed), len(emoji)) > 100


def test_channels_and_countries_are_all_used() -> None:
    channels = Counter(row.channel for row in ROWS)
    assert set(channels) == {"email", "chat", "review", "ticket"}
    assert min(channels.values()) > 400
    assert len({row.country for row in ROWS}) >= 20


def test_no_part_is_left_unfilled() -> None:
    unfilled = re.compile(r"\{\w*\}|\[[^\[\]\n]*\|")
    assert [text for text in TEXTS if unfilled.search(text)] == []


def test_a_message_has_the_columns_of_the_table() -> None:
    assert Message._fields == ("id", "channel", "country", "created_at", "text")
