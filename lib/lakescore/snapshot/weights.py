"""Weights in safetensors files, checked by their headers alone: whole, safe, fitting the labels."""

import json
import math
import re
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

from lakescore.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5")
_PICKLE = re.compile(r"(pytorch_model|model|tf_model|adapter_model)[\w.-]*")
_MAX_HEADER = 100_000_000  # the safetensors library's own limit
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
# The last layer of a classification head, as transformers' families call it.
_HEAD = re.compile(r"(.+\.)?(classifier|score|logits_proj)(\.out_proj|\.linear_out)?\.weight")


def check_offered(names: Collection[str], reference: str) -> None:
    """Refuse a model whose list of files already shows that its weights cannot be read safely.

    Where safetensors are offered, pickles beside them are left behind, unread.
    """
    if WEIGHTS in names or INDEX in names:
        return
    pickles = sorted(name for name in names if _is_pickle(name))
    if pickles:
        raise ModelError(
            f"{reference}: its weights are a pickle ({_some(pickles)}), which can run code when "
            "it is read; convert it on a machine that you can lose: AutoModel….from_pretrained("
            "…).save_pretrained(folder, safe_serialization=True)"
        )
    adapters = sorted(name for name in names if name.startswith("adapter_"))
    if adapters:
        raise ModelError(
            f"{reference}: holds an adapter ({_some(adapters)}) without its model; merge them "
            "(PEFT's merge_and_unload) and save the whole"
        )
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if others:
        raise ModelError(
            f"{reference}: has no {WEIGHTS} and no {INDEX}, only {_some(others)}; save it again "
            "with save_pretrained, or rename its only file"
        )
    raise ModelError(
        f"{reference}: has no {WEIGHTS}; save it with save_pretrained(…, safe_serialization=True)"
    )


def shards(index: object, names: Collection[str], reference: str) -> dict[str, set[str]]:
    """Return the tensors that each file holds by the weights' index, all files being at hand."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{reference}: {INDEX} has no weight_map; save the model again")
    result: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise ModelError(
                f"{reference}: {INDEX} names {name!r}, which is not a .safetensors file beside "
                "it; save the model again with save_pretrained(…, safe_serialization=True)"
            )
        result.setdefault(name, set()).add(tensor)
    missing = sorted(set(result).difference(names))
    if missing:
        pickles = sorted(name for name in names if _is_pickle(name))
        instead = f" (there is {_some(pickles)}, a pickle, which is not read)" if pickles else ""
        raise ModelError(
            f"{reference}: {INDEX} names {_some(missing)}, which the model lacks{instead}; fetch "
            "or save it again"
        )
    return result


def check_weights(
    folder: Path, files: dict[str, set[str] | None], labels: int, reference: str
) -> None:
    """Refuse weights that are cut short, malformed, or whose head does not have `labels` outputs.

    `files` says which tensors each file must hold, None standing for no expectation. The tensors
    themselves are not read.
    """
    shapes: dict[str, list[int]] = {}
    for name, expected in files.items():
        found = read_header(folder / name, reference)
        if lacking := sorted((expected or set()).difference(found)):
            raise ModelError(
                f"{reference}: {name} lacks the tensor {_some(lacking)} that {INDEX} places in "
                "it; fetch or save the model again"
            )
        shapes |= found
    if not shapes:
        raise ModelError(f"{reference}: its weights hold no tensors; fetch or save it again")
    for tensor, shape in shapes.items():
        if _HEAD.fullmatch(tensor) and len(shape) == 2 and shape[0] != labels:
            raise ModelError(
                f"{reference}: {tensor} has {shape[0]} outputs and id2label in config.json names "
                f"{labels} labels; make them agree"
            )


def read_header(path: Path, reference: str) -> dict[str, list[int]]:
    """Return the shape of each tensor; refuse a file that safetensors would not take whole.

    The format: 8 bytes of length, little endian, then that much JSON, then the data, which the
    tensors fill without holes (https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise ModelError(
                f"{reference}: {path.name} is a Git LFS pointer, not weights; run `git lfs pull` "
                "where it was cloned"
            )
        if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
            raise _damaged(path, reference, f"a header longer than its {size} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode())
        header.pop("__metadata__", None)
        spans = sorted(
            (*(int(offset) for offset in entry["data_offsets"]), name)
            for name, entry in header.items()
        )
        shapes = {name: [int(n) for n in entry["shape"]] for name, entry in header.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise _damaged(path, reference, "a header that is not valid") from error
    position = 0
    for span in spans:
        if len(span) != 3 or span[0] != position or span[1] < span[0]:
            raise _damaged(path, reference, "tensors that overlap or leave holes")
        begin, position, name = span
        bits = _BITS.get(dtypes[name])
        if bits is None:
            raise _damaged(path, reference, f"a tensor of unknown type {dtypes[name]!r}")
        if min(shapes[name], default=0) < 0 or (
            math.prod(shapes[name]) * bits != (position - begin) * 8
        ):
            raise _damaged(path, reference, f"a size that does not fit {name}'s shape")
    if position != size - 8 - length:
        raise _damaged(path, reference, f"{size - 8 - length} bytes of data, not {position}")
    return shapes


def _damaged(path: Path, reference: str, what: str) -> ModelError:
    return ModelError(
        f"{reference}: {path.name} is cut short or damaged: it has {what}; fetch or save it again"
    )


def _is_pickle(name: str) -> bool:
    return name.endswith(_PICKLE_SUFFIXES) and _PICKLE.fullmatch(name) is not None


def _some(names: Iterable[str]) -> str:
    """Join the first few names."""
    names = list(names)
    return ", ".join(islice(names, 3)) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
