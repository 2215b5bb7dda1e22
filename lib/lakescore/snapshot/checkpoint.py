"""What makes a folder of files a model that is safe to load and fits its task: no torch needed.

Only what transformers reads of a classification model is ever copied; whatever could make it run
code (pickles, auto_map, kernels from the Hub) is refused by name.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakescore.config import TaskName
from lakescore.errors import ModelError
from lakescore.snapshot import weights

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        TOKENIZER_CONFIG,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "spiece.model",
        "spm.model",
        "tokenizer.model",
    }
)
ARCHITECTURES: dict[TaskName, str] = {
    "entities": "token-classification",
    "sentiment": "sequence-classification",
}

_SUFFIXES = {
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "sequence-classification",
}
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Families whose fast tokenizer transformers builds from these files alone, without tokenizer.json
# and without the sentencepiece package; all others need tokenizer.json.
_WORDPIECE = "bert distilbert electra mobilebert convbert squeezebert funnel mpnet".split()
_FAST_WITHOUT_JSON = {
    **{family: {"vocab.txt"} for family in _WORDPIECE},
    **{family: {"vocab.json", "merges.txt"} for family in ("roberta", "longformer", "deberta")},
}
# Families whose tokenizer class has a pad token even where no file names one.
_PADS_BY_DEFAULT = {
    *_FAST_WITHOUT_JSON,
    *"albert bart bigbird camembert debertav2 mbart rembert t5 xlmroberta xlnet".split(),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Checkpoint:
    """What the checked files of a model say of it."""

    labels: tuple[str, ...]
    architecture: str
    problem_type: str | None
    tokenizer_family: str


def small_files(names: Collection[str], reference: str) -> list[str]:
    """Choose what to copy before the weights: all that tells whether the weights are worth it."""
    if CONFIG not in names:
        raise ModelError(
            f"{reference}: has no {CONFIG}; name a folder or revision that save_pretrained wrote"
        )
    weights.check_offered(names, reference)
    chosen = TOKENIZER_FILES.intersection(names)
    if not chosen - {TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"}:
        raise ModelError(
            f"{reference}: has no tokenizer; save one beside the model with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(folder)"
        )
    # Where there are both, transformers takes the single file and ignores the index.
    index = {weights.INDEX} if weights.WEIGHTS not in names else set()
    return sorted({CONFIG} | index | chosen)


def weight_files(folder: Path, names: Collection[str], reference: str) -> dict[str, Any]:
    """Return each file of weights with the tensors that it must hold; None expects nothing."""
    if weights.WEIGHTS in names:
        return {weights.WEIGHTS: None}
    return dict(weights.shards(read_json(folder / weights.INDEX, reference), names, reference))


def check_small_files(folder: Path, *, task: TaskName | None, reference: str) -> Checkpoint:
    """Check a folder's configuration and tokenizer; its weights need not be there yet.

    Without a task both architectures will do.
    """
    config = _read_object(folder / CONFIG, reference)
    tokenizer_config: dict[str, Any] = {}
    if (folder / TOKENIZER_CONFIG).exists():
        tokenizer_config = _read_object(folder / TOKENIZER_CONFIG, reference)
    _refuse_code(CONFIG, config, reference)
    _refuse_code(TOKENIZER_CONFIG, tokenizer_config, reference)
    if "quantization_config" in config:
        raise ModelError(
            f"{reference}: its weights are quantised (quantization_config in {CONFIG}), which "
            "lakescore does not read; take the model that they were made from"
        )
    for key in _SIZES:
        value = config.get(key, 1)
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(
                f"{reference}: {key} in {CONFIG} is {value!r}; it must be a positive integer"
            )
    family = tokenizer_family(config, tokenizer_config)
    _check_tokenizer(folder, config, tokenizer_config, family, reference)
    return Checkpoint(
        labels=_labels(config, reference),
        architecture=_architecture(config, task, reference),
        problem_type=_problem_type(config, reference),
        tokenizer_family=family,
    )


def read_json(path: Path, reference: str) -> Any:
    """Read strict JSON: no NaN, no infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        return json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        if "is not a number of JSON" in str(error):
            reason = str(error)
        raise ModelError(
            f"{reference}: {path.name} is not valid JSON ({reason}); fetch or save the model again"
        ) from None


def tokenizer_family(config: dict[str, Any], tokenizer_config: dict[str, Any]) -> str:
    """Name the tokenizer's class without its suffix, as transformers' AutoTokenizer finds it."""
    name = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(name, str):
        name = str(config.get("model_type"))
    return re.sub(r"tokenizer(fast)?$|[-_]", "", name.lower())


def has_fast_tokenizer(names: Collection[str], family: str) -> bool:
    """Say whether transformers can make a fast tokenizer of these files and no other package."""
    needed = _FAST_WITHOUT_JSON.get(family, {"tokenizer.json"})
    return "tokenizer.json" in names or needed <= set(names)


def has_fast_tokenizer_in(folder: Path, reference: str) -> bool:
    """Say so of a folder that holds a model's configuration and perhaps its tokenizer."""
    names = {path.name for path in folder.iterdir()}
    if CONFIG not in names or not TOKENIZER_FILES.intersection(names):
        return False
    own = _read_object(folder / TOKENIZER_CONFIG, reference) if TOKENIZER_CONFIG in names else {}
    family = tokenizer_family(_read_object(folder / CONFIG, reference), own)
    return has_fast_tokenizer(names, family)


def _check_tokenizer(
    folder: Path, config: dict[str, Any], own: dict[str, Any], family: str, reference: str
) -> None:
    names = {path.name for path in folder.iterdir()}
    if not has_fast_tokenizer(names, family):
        raise ModelError(
            f"{reference}: its tokenizer is a slow one (no tokenizer.json), which has no offsets; "
            "make a fast one: AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained("
            "folder)"
        )
    pad = own.get("pad_token")
    if not pad and "special_tokens_map.json" in names:
        pad = _read_object(folder / "special_tokens_map.json", reference).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if not pad and family not in _PADS_BY_DEFAULT:
        raise ModelError(
            f"{reference}: its tokenizer has no pad token, so that texts cannot be batched; set "
            f'pad_token in {TOKENIZER_CONFIG} and pad_token_id in {CONFIG} (for GPT-2: "<|endoft'
            'ext|>")'
        )
    if "tokenizer.json" not in names:
        return
    tokens = _vocabulary(_read_object(folder / "tokenizer.json", reference), reference)
    if pad and pad not in tokens:
        raise ModelError(
            f"{reference}: pad token {pad!r} is not in tokenizer.json; set pad_token in "
            f"{TOKENIZER_CONFIG} to a token that is"
        )
    largest, room = max(tokens.values(), default=0), config.get("vocab_size")
    if room is not None and largest >= room:
        raise ModelError(
            f"{reference}: tokenizer.json has ids up to {largest} and vocab_size in {CONFIG} is "
            f"{room}; the tokenizer belongs to another model"
        )


def _vocabulary(tokenizer: dict[str, Any], reference: str) -> dict[str, int]:
    """Return the ids of all tokens of a tokenizer.json."""
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [piece, score]
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or ()}
        return {str(token): int(number) for token, number in {**vocabulary, **added}.items()}
    except (KeyError, TypeError, ValueError, IndexError):
        raise ModelError(
            f"{reference}: tokenizer.json has no vocabulary; save the tokenizer again"
        ) from None


def _labels(config: dict[str, Any], reference: str) -> tuple[str, ...]:
    id2label = config.get("id2label")
    remedy = f"set id2label in {CONFIG} and save or register it again"
    if not isinstance(id2label, dict) or not id2label:
        raise ModelError(f"{reference}: {CONFIG} has no id2label; {remedy}")
    try:
        by_id = {int(key): label for key, label in id2label.items()}
    except ValueError:
        by_id = {}
    if sorted(by_id) != list(range(len(id2label))):
        raise ModelError(f"{reference}: id2label's keys are not 0 to {len(id2label) - 1}; {remedy}")
    labels = tuple(by_id[number] for number in range(len(by_id)))
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise ModelError(f"{reference}: id2label has a label that is not a name; {remedy}")
    if any(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        shown = labels[0] if len(labels) == 1 else f"{labels[0]}..{labels[-1]}"
        raise ModelError(f"{reference}: labels are {shown}; {remedy}")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ModelError(f"{reference}: id2label has {twice!r} more than once; {remedy}")
    return labels


def _architecture(config: dict[str, Any], task: TaskName | None, reference: str) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = next((_SUFFIXES[end] for end in _SUFFIXES if str(name).endswith(end)), "")
    wanted = [ARCHITECTURES[task]] if task else list(ARCHITECTURES.values())
    if found not in wanted:
        fit = f"does not fit the task {task}" if task else "fits no task"
        raise ModelError(
            f"{reference}: architecture {name} {fit}; name a {' or '.join(wanted)} model"
        )
    return found


def _problem_type(config: dict[str, Any], reference: str) -> str | None:
    value = config.get("problem_type")
    if value is not None and value not in _PROBLEM_TYPES:
        raise ModelError(
            f"{reference}: problem_type in {CONFIG} is {value!r}; known: "
            f"{', '.join(_PROBLEM_TYPES)}"
        )
    return str(value) if value is not None else None


def _refuse_code(name: str, value: Any, reference: str) -> None:
    """Refuse what makes transformers run code from elsewhere (CVE-2026-4372 among it)."""
    for key, inner in _entries(value):
        if key in ("auto_map", "custom_pipelines"):
            what = "asks for Python code of its own"
        elif key.endswith("_internal"):
            what = "sets a field that is transformers' own and can make it run code"
        elif "implementation" in key and "/" in json.dumps(inner):
            what = "asks for a kernel from the Hub"
        else:
            continue
        raise ModelError(
            f"{reference}: {key!r} in {name} {what}; lakescore runs none: remove the key if the "
            "model works without, or take another model"
        )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key with its value, at every depth."""
    remaining = [value]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            yield from value.items()
            remaining.extend(value.values())
        elif isinstance(value, list):
            remaining.extend(value)


def _read_object(path: Path, reference: str) -> dict[str, Any]:
    value = read_json(path, reference)
    if not isinstance(value, dict):
        raise ModelError(f"{reference}: {path.name} is not a JSON object; save the model again")
    return value
