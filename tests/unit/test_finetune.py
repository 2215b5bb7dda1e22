"""Fine-tuning: the loop and the checkpoint that it writes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lakescore.errors import ConfigError, DataError, ModelError
from lakescore.finetune import FinetuneResult, train
from lakescore.finetune.recipe import FinetuneConfig
from tests.tiny_models import (
    CORPUS,
    ENTITY_LABELS,
    SENTIMENT_LABELS,
    tiny_model,
)

GOOD = ["I love this coffee machine", "great quick service", "thank you, it is quiet", "love it"]
BAD = ["the worst experience", "the app crashed", "the delivery was late", "still waiting, crushed"]
SENTIMENT = pd.DataFrame({"text": GOOD + BAD, "label": [1] * 4 + [0] * 4})
TAGGED = ["Anna does n't like Oslo .", "Maria Nowak flew from Lisbon ."]
ENTITIES = pd.DataFrame(
    {
        "text": TAGGED,
        "tokens": [text.split() for text in TAGGED],
        "tags": [["B-PER", *"OOO", "B-LOC", "O"], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]],
    }
)


def config(base: Path, output: Path, **changes: Any) -> FinetuneConfig:
    values = {
        "task": "sentiment",
        "base": str(base),
        "output": str(output),
        "labels": list(SENTIMENT_LABELS),
        "train": {"rows": 2.0},
        "valid": {"rows": 1.0},
        "epochs": 10,
        "learning_rate": 0.01,
        "token_budget": 64,
        "seed": 3,
    }
    return FinetuneConfig.parse(values | changes)


def losses_of(
    tables: Mapping[str, pd.DataFrame], settings: FinetuneConfig
) -> tuple[FinetuneResult, list[float]]:
    losses: list[float] = []
    result = train(
        tables,
        settings,
        on_metrics=lambda metrics, step: losses.extend(
            value for name, value in metrics.items() if name == "loss"
        ),
    )
    return result, losses


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost tiny models more than they give, all the more on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), head="sequence-classification", layers=3)


@pytest.fixture(scope="module")
def teacher(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    output = tmp_path_factory.mktemp("out") / "teacher"
    settings = config(base, output, vocabulary={"entries": 600, "tables": ["rows"]})
    result, losses = losses_of({"rows": SENTIMENT}, settings)
    assert losses[-1] < losses[0] / 2
    return result


def test_the_loss_falls_and_the_checkpoint_says_what_was_learnt(teacher: FinetuneResult) -> None:
    from transformers import pipeline

    assert teacher.metrics["rows/accuracy"] == 1.0
    classify = pipeline("text-classification", model=str(teacher.output), device="cpu")
    said = [each["label"] for each in classify(GOOD + BAD)]
    assert said == ["positive"] * 4 + ["negative"] * 4


def test_a_checkpoint_has_fp16_weights_a_plain_tokenizer_and_a_whole_config(
    teacher: FinetuneResult,
) -> None:
    from safetensors import safe_open

    assert sorted(path.name for path in teacher.output.iterdir()) == [
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with safe_open(teacher.output / "model.safetensors", "np") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}
    assert kinds == {"F16"}
    settings = json.loads((teacher.output / "config.json").read_text())
    assert settings["id2label"] == {"0": "negative", "1": "positive"}
    assert (settings["problem_type"], settings["vocab_size"]) == (
        "single_label_classification",
        600,
    )
    tokenizer = json.loads((teacher.output / "tokenizer.json").read_text())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    assert len(tokenizer["model"]["vocab"]) == 600


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    base: Path, tmp_path: Path
) -> None:
    def weights(name: str, seed: int) -> bytes:
        settings = config(base, tmp_path / name, epochs=1, seed=seed)
        return (
            losses_of({"rows": SENTIMENT}, settings)[0].output / "model.safetensors"
        ).read_bytes()

    first = weights("a", 3)
    assert first == weights("b", 3)
    assert first != weights("c", 4)


def test_a_student_keeps_some_layers_and_the_tokenizer_of_its_teacher(
    teacher: FinetuneResult, tmp_path: Path
) -> None:
    settings = config(
        teacher.output,
        tmp_path / "student",
        layers=[0, 2],
        epochs=20,
        distillation={"teacher": str(teacher.output), "unlabelled": {"more": 1.0}},
    )
    tables = {"rows": SENTIMENT, "more": pd.DataFrame({"text": list(CORPUS)})}
    student, losses = losses_of(tables, settings)
    assert losses[-1] < losses[0]
    assert student.metrics["rows/accuracy"] == 1.0
    read = {
        each.output: json.loads((each.output / "config.json").read_text())
        for each in (teacher, student)
    }
    assert read[student.output]["num_hidden_layers"] == 2
    same = [(each.output / "tokenizer.json").read_bytes() for each in (teacher, student)]
    assert same[0] == same[1]


def test_a_teacher_with_another_tokenizer_is_refused(
    base: Path, teacher: FinetuneResult, tmp_path: Path
) -> None:
    settings = config(base, tmp_path / "x", distillation={"teacher": str(teacher.output)})
    with pytest.raises(ConfigError, match=r"distillation.teacher: .*trim both"):
        losses_of({"rows": SENTIMENT}, settings)


def test_layers_that_the_base_lacks_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers: \[0, 7\]; the base has layers 0 to 2"):
        losses_of({"rows": SENTIMENT}, config(base, tmp_path / "x", layers=[0, 7]))


@pytest.mark.parametrize("reference", ["package:no_such_package/model", "no/such/folder"])
def test_a_base_that_is_not_there_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ModelError), match=f"base: {reference}: "):
        losses_of({"rows": SENTIMENT}, config(Path(reference), tmp_path / "x"))


def test_entities_are_learnt_with_every_augmentation(tmp_path: Path) -> None:
    settings = config(
        tiny_model(tmp_path / "base"),
        tmp_path / "entities",
        task="entities",
        labels=list(ENTITY_LABELS),
        train={"rows": 8.0},
        epochs=20,
        learning_rate=0.02,
        token_budget=256,
        augmentation={"natural_spacing": 0.5, "swap_mentions": 0.3, "chain": 0.3},
    )
    result, losses = losses_of({"rows": ENTITIES}, settings)
    assert losses[-1] < losses[0] / 2
    assert result.metrics["rows/micro_f1"] > 0.5


def test_excluded_texts_are_not_trained_on_whatever_their_case_and_spacing(
    base: Path, tmp_path: Path
) -> None:
    flipped = SENTIMENT.assign(label=1 - SENTIMENT["label"])
    shouted = SENTIMENT.assign(text=SENTIMENT["text"].str.upper().str.replace(" ", "  "))
    tables = {"rows": SENTIMENT, "flipped": pd.concat([flipped, SENTIMENT.assign(text="fine")])}
    settings = config(base, tmp_path / "x", train={"rows": 2.0, "flipped": 9.0}, exclude=["not"])
    with pytest.raises(DataError, match="rows: no row is left to train on"):
        losses_of(tables | {"not": shouted}, settings)


def test_the_recipes_are_valid_and_both_models_get_the_same_vocabulary() -> None:
    folder = Path(__file__).resolve().parents[2] / "conf"
    recipes = {path.name: FinetuneConfig.load(path) for path in folder.glob("finetune_*.yml")}
    assert {"finetune_entities.yml", "finetune_sentiment.yml"} <= recipes.keys()
    trimmed_to = [each.vocabulary for each in recipes.values() if each.vocabulary is not None]
    assert len(trimmed_to) == 2
    assert trimmed_to[0] == trimmed_to[1]
    for recipe in recipes.values():
        tested = {name for name in recipe.tables if "uci_" in name or "uner_" in name}
        assert tested <= set(recipe.exclude)
        assert not tested & {*recipe.train, *recipe.valid}
