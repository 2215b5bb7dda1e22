"""Write docs/configuration.md from the models that check a configuration.

python scripts/config_reference.py > docs/configuration.md
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from lakescore.config import JobConfig, Strict
from lakescore.finetune import FinetuneConfig

HEAD = """# Configuration

Made from `lib/lakescore/config.py` and `lib/lakescore/finetune/recipe.py` by
`python scripts/config_reference.py > docs/configuration.md`; a test holds it to them.

A configuration is a YAML file. Any key can be given on the command line, as in
`--set encoding.dtype=auto`: the value is read as YAML, and a name, a path or another text is taken
as it is. `--default KEY=VALUE` (but for `finetune`) is for a key that the configuration leaves out:
it holds only where the key's group is there and not null, so that no task is added. An unknown key
is an error that names the known ones.
"""


def main() -> None:
    """Print the page."""
    sys.stdout.write(page())


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, model in (
        ("A job: `lakescore score`, `rescore`, `retry`, `purge`", JobConfig),
        ("Fine-tuning: `lakescore finetune`", FinetuneConfig),
    ):
        parts.append(f"\n## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n")
        parts += [f"| {' | '.join(cells)} |\n" for cells in rows(model)]
    return "".join(parts)


def rows(model: type[Strict]) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, value, default and meaning of every setting of a model, groups first."""
    schema = model.model_json_schema()
    yield from _rows(schema, schema["$defs"], "")


def _rows(
    schema: dict[str, Any], groups: dict[str, Any], prefix: str
) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema["properties"].items():
        options = [field, *field.get("anyOf", ())]
        inner = next((each["$ref"].split("/")[-1] for each in options if "$ref" in each), None)
        is_needed = name in schema.get("required", ())
        said = " ".join(field.get("description", "").split())
        if inner is not None:
            meaning = said or " ".join(groups[inner].get("description", "").split())
            yield f"`{prefix}{name}`", "a group", "needed" if is_needed else "", meaning
            yield from _rows(groups[inner], groups, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", _value(field), _default(field, is_needed), said


def _default(field: dict[str, Any], is_needed: bool) -> str:
    if is_needed:
        return "needed"
    default = field.get("default")
    return "" if default in (None, [], {}) else f"`{json.dumps(default).strip(chr(34))}`"


def _value(field: dict[str, Any]) -> str:
    """Say in words what a value may be."""
    kinds = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    [kind] = kinds
    if "enum" in kind:
        return ", ".join(f"`{each}`" for each in kind["enum"])
    if kind["type"] == "array":
        of = kind.get("items", {}).get("type", "")
        return "whole numbers" if of == "integer" else "a name or a list of them"
    if kind["type"] == "object":
        return "names and a number for each"
    words = {"string": "text", "integer": "a whole number", "number": "a number"}
    words["boolean"] = "`true` or `false`"
    bounds = [
        f"{word} {kind[bound]:,}"
        for bound, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if bound in kind and kind[bound] < 2**31
    ]
    return " ".join([words[kind["type"]], *bounds])


if __name__ == "__main__":
    main()
