"""The two models in models/: what they find, over Spark, in text as it comes."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lakescore
from lakescore.encoder import load_tokenizer
from lakescore.snapshot import resolve
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
ENTITIES, SENTIMENT = ROOT / "models/entities", ROOT / "models/sentiment"
CONFIG = {
    "tasks": {"entities": {"model": str(ENTITIES)}, "sentiment": {"model": str(SENTIMENT)}},
}
FILLER = (
    "The parcel came two days late and nobody told us why. We had asked for a call before noon, "
    "but the phone stayed silent. In the end the box was left outside in the rain. "
)


def test_both_models_share_one_tokenizer() -> None:
    entities = resolve(str(ENTITIES), task="entities")
    sentiment = resolve(str(SENTIMENT), task="sentiment")
    assert entities.tokenizer_fingerprint == sentiment.tokenizer_fingerprint
    assert {label[2:] for label in entities.labels[1:]} == {"PER", "ORG", "LOC", "MISC"}
    assert sentiment.labels == ("negative", "positive")


def test_an_entity_deep_in_a_long_text_is_found_with_its_offsets(spark: "SparkSession") -> None:
    tokenizer = load_tokenizer(ENTITIES)
    sentence = "Yesterday Angela Merkel met Barack Obama in Berlin. "
    texts = {}
    for at in (600, 1500, 5000):  # tokens before it
        before = FILLER
        while tokenizer.tokenize([before]).lengths[0] < at:
            before += FILLER
        cut = tokenizer.tokenize([before])
        before = before[: before.rindex(".", 0, int(cut.ends[at - 1])) + 1] + " "
        texts[at] = before + sentence + FILLER * 8
    config = lakescore.JobConfig.parse(CONFIG)
    frame = spark.createDataFrame([*texts.items()], "id int, text string")
    rows = lakescore.score(frame, config).collect()
    assert {row.id for row in rows} == texts.keys()
    for row in rows:
        found = {(each.word, each.start, each.entity_group) for each in row.entities}
        for word, group in [("Angela Merkel", "PER"), ("Barack Obama", "PER"), ("Berlin", "LOC")]:
            assert (word, texts[row.id].index(word), group) in found
        assert row.sentiment.label == "negative"


def test_arbitrary_strings_are_all_accounted_for(spark: "SparkSession", tmp_path: Path) -> None:
    dice = random.Random(3)
    ranges = [(0, 32), (32, 127), (0x300, 0x370), (0x590, 0x700), (0x2000, 0x2070)]
    ranges += [(0x4E00, 0x9FFF), (0xE000, 0xE100), (0xFFF0, 0x10000), (0x1F300, 0x1FAFF)]
    rows: list[tuple[int, str | None]] = []
    for number in range(2_000):
        pieces = [
            "".join(chr(dice.randrange(*dice.choice(ranges))) for _ in range(dice.randrange(1, 40)))
            for _ in range(dice.randrange(4))
        ]
        rows.append((number, dice.choice([" ", "", "\n"]).join(pieces)))
    longest = [FILLER * 600, "x" * 2**20, "\u202e" * 2**20, None]
    rows += list(enumerate(longest, start=2_000))
    frame = spark.createDataFrame(rows, "id int, text string")
    # A string of Spark's may hold any bytes, half a surrogate pair among them.
    odd = spark.sql("select 2004 id, cast(unhex('41eda08042') as string) text")
    config = lakescore.JobConfig.parse(CONFIG | {"encoding": {"dtype": "auto"}})
    scored = lakescore.score(frame.union(odd).repartition(4), config)
    scored.write.parquet(str(tmp_path / "scored"))
    found = {row.id: row for row in spark.read.parquet(str(tmp_path / "scored")).collect()}
    assert sorted(found) == list(range(2_005))
    assert found[2_000].n_tokens > 20_000
    assert found[2_003].error.code == "null_text"
    assert found[2_004].error.code == "invalid_unicode"
    for number, text in rows:
        row = found[number]
        assert (row.error is None) == (row.entities is not None) == (row.sentiment is not None)
        for each in row.entities or []:
            assert text is not None
            assert text[each.start : each.end] == each.word
