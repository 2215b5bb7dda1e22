"""Models' files changed by hand, and what is then said of them."""

import json
from pathlib import Path

import pytest

from lakescore.errors import ModelError
from lakescore.snapshot import resolve

FILES = [
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def edit(path: Path, **changes: object) -> None:
    """Change a JSON file; None removes the key."""
    value = json.loads(path.read_text("utf-8"))
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}), "utf-8")


def refusal(reference: Path | str, cache: Path, task: str = "entities") -> str:
    """Return the message, without the reference that it starts with."""
    with pytest.raises(ModelError) as caught:
        resolve(str(reference), task=task, cache=cache)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{reference}: ")
    assert message.count("\n") <= 1
    assert [path for path in cache.glob("*") if path.is_dir() and path.name != "refs"] == []
    return message.removeprefix(f"{reference}: ")


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, object] = {}
    position = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        offsets = [position, position + size]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        position += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(position))


def split(model: Path) -> None:
    """Split the weights in two, by the format alone."""
    whole = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header.pop("__metadata__", None)
    data = whole[8 + length :]
    names = sorted(header)
    weight_map = {}
    for part, members in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{part}-of-00002.safetensors"
        own, content = {}, b""
        for name in members:
            begin, end = header[name]["data_offsets"]
            offsets = [len(content), len(content) + end - begin]
            own[name] = {**header[name], "data_offsets": offsets}
            content += data[begin:end]
            weight_map[name] = file
        raw = json.dumps(own).encode()
        (model / file).write_bytes(len(raw).to_bytes(8, "little") + raw + content)
    index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (model / "model.safetensors").unlink()
