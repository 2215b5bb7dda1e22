"""Trim a WordPiece vocabulary to the entries that a corpus uses most."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lakescore.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ENCODE_ROWS = 1000


def count_entries(tokenizer: "Tokenizer", texts: Iterable[str]) -> Counter[int]:
    """How often each vocabulary id stands for a piece of `texts`, special tokens aside."""
    counts: Counter[int] = Counter()
    chunk: list[str] = []

    def add() -> None:
        for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
            counts.update(encoding.ids)
        chunk.clear()

    for text in texts:
        chunk.append(text)
        if len(chunk) == _ENCODE_ROWS:
            add()
    add()
    return counts


def choose_entries(
    vocabulary: dict[str, int],
    special: Iterable[str],
    counts: Counter[int],
    entries: int,
    *,
    prefix: str,
) -> npt.NDArray[np.int64]:
    """The ids to keep, ascending: special tokens, single characters, then the most used.

    Ties go to the lower id, so that the choice depends on the counts alone. Single characters, with
    and without the continuing `prefix`, stay so that a rare word becomes pieces rather than [UNK];
    letters of other scripts than Latin only where the texts use them.
    """
    names = set(special)
    kept = {
        index
        for piece, index in vocabulary.items()
        if piece in names or _is_basic(piece.removeprefix(prefix))
    }
    if entries < len(kept):
        raise ModelError(
            f"vocabulary.entries is {entries}, but special tokens and single characters alone "
            f"are {len(kept)}; set at least that many"
        )
    rest = sorted((-counts[index], index) for index in vocabulary.values() if index not in kept)
    kept.update(index for _, index in rest[: entries - len(kept)])
    return np.array(sorted(kept), dtype=np.int64)


def _is_basic(piece: str) -> bool:
    return len(piece) == 1 and (
        not piece.isalpha() or unicodedata.name(piece, "").startswith("LATIN")
    )


def plain_tokenizer(tokenizer_json: str) -> dict[str, Any]:
    """The tokenizer's own JSON without truncation and padding, which belong to its callers."""
    state: dict[str, Any] = json.loads(tokenizer_json)
    return state | {"truncation": None, "padding": None}


def special_tokens(state: dict[str, Any]) -> list[str]:
    """The contents of the added tokens of a tokenizer's JSON."""
    return [token["content"] for token in state["added_tokens"]]


def trim(state: dict[str, Any], kept: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The same tokenizer over the entries `kept`, numbered anew in the order of their old ids.

    A piece that went is split by WordPiece's own longest match into pieces that stayed; a text made
    of kept whole words gives the same pieces as before.
    """
    if state["model"]["type"] != "WordPiece":
        raise ModelError(
            f"tokenizer is {state['model']['type']}; only a WordPiece vocabulary can be trimmed: "
            "leave vocabulary out"
        )
    number = {int(old): new for new, old in enumerate(kept)}
    vocabulary = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    trimmed = dict(state)
    trimmed["model"] = state["model"] | {
        "vocab": {piece: number[index] for piece, index in vocabulary if index in number}
    }
    trimmed["added_tokens"] = [
        token | {"id": number[token["id"]]} for token in state["added_tokens"]
    ]
    trimmed["post_processor"] = _renumber(state["post_processor"], number)
    return trimmed


def _renumber(post_processor: dict[str, Any] | None, number: dict[int, int]) -> Any:
    """The post-processor with the new ids of its special tokens."""
    if post_processor is None:
        return None
    if post_processor["type"] == "TemplateProcessing":
        tokens = {
            name: token | {"ids": [number[index] for index in token["ids"]]}
            for name, token in post_processor["special_tokens"].items()
        }
        return post_processor | {"special_tokens": tokens}
    if post_processor["type"] == "BertProcessing":
        ends: dict[str, Sequence[Any]] = {
            end: [post_processor[end][0], number[post_processor[end][1]]] for end in ("sep", "cls")
        }
        return post_processor | ends
    raise ModelError(
        f"tokenizer's post-processor is {post_processor['type']}; trimming knows "
        "TemplateProcessing and BertProcessing: leave vocabulary out"
    )
