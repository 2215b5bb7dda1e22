"""A text that must not get out: planted in every row, with every kind of error forced."""

import sys
from pathlib import Path

from tests.faults.cases import POISON, REFUSED, TEXT_FAULTS
from tests.faults.lab import Lab

CANARY = "Quuxenbaum"
ROWS = 1_000


def hits(lab: Lab) -> int:
    """Count the files with the canary: logs, MLflow's, what a driver printed, Delta's own logs."""
    spark, source = lab.spark, str(lab.folder / "canary")
    # One row alone kills its worker: each costs several processes.
    text = (
        f"CASE WHEN id = 7 THEN encode(concat(secret, ' {POISON}'), 'UTF-8')"
        f" WHEN id % 8 = 1 THEN encode(concat(secret, ' {REFUSED}'), 'UTF-8')"
        " WHEN id % 8 = 2 THEN encode(concat(secret, repeat(' and on', 30)), 'UTF-8')"
        " WHEN id % 8 = 3 THEN encode(concat(secret, repeat(' and on', 90)), 'UTF-8')"
        " WHEN id % 8 = 4 THEN concat(encode(secret, 'UTF-8'), X'FF')"
        " WHEN id % 8 = 5 THEN encode(concat(secret, ' \u00a7'), 'UTF-8')"
        " ELSE encode(secret, 'UTF-8') END"
    )
    rows = spark.range(0, ROWS, 1, 2).selectExpr("id", f"concat('{CANARY} ', id) AS secret")
    rows.selectExpr("id", f"{text} AS text", "id % 3 AS other").write.format("delta").option(
        "delta.enableChangeDataFeed", "true"
    ).save(source)
    models = dict(lab.models) | {"entities": str(_not_finite(lab))}
    settings = lab.settings(
        source,
        "canary_target",
        tasks={task: {"model": model} for task, model in models.items()},
        encoding={"long_text": "reject", "max_length": 128},
        source={"changes": "cdf"},
    )
    driver = lab.driver(stub=False, **TEXT_FAULTS)

    answers = [driver.run(settings)]
    wanted = {
        "invalid_unicode", "too_long", "out_of_memory", "non_finite", "tokenizer_error",
        "worker_lost",
    }  # fmt: skip
    missing = wanted - answers[0].get("rows_failed", {}).keys()
    if missing:
        print(f"canary: no row has {missing}: {answers[0]}", file=sys.stderr)
        return len(missing)
    # Errors that end a run: the budget, double keys, a drifted schema, a target to be made.
    other = lab.settings(source, "canary_budget", encoding=settings["encoding"])
    answers.append(driver.run(other | {"limits": {"max_error_fraction": 0.01}}))
    spark.sql(f"INSERT INTO delta.`{source}` SELECT * FROM delta.`{source}` WHERE id < 5")
    answers.append(driver.run(settings))
    answers.append(driver.run(settings | {"source": other["source"]}))
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (late string)")
    answers.append(driver.run(settings))
    said = lab.folder / "canary.answers"
    said.write_text(str(answers))
    if any("error" not in answer for answer in answers[1:]):
        print(f"canary: a run was to fail: {answers[1:]}", file=sys.stderr)
        return 1
    return sum(_has_canary(file) for file in _places(lab, said))


def _not_finite(lab: Lab) -> Path:
    """Return a model whose logits are not a number for texts with a §."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    from tests.tiny_models import tiny_model

    folder = tiny_model(lab.folder / "not_finite", seed=3)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in weights if each.endswith("word_embeddings.weight"))
    weights[name][tokenizer.encode("§", add_special_tokens=False).ids] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _places(lab: Lab, said: Path) -> list[Path]:
    """Return the files where no text may be: all but the source's and the target's rows."""
    folder = lab.folder
    found = [
        said,
        *folder.glob("*.spark.log"),
        *folder.glob("*.stderr"),
        *folder.glob("mlflow.db*"),
    ]
    found += [file for file in (folder / "mlruns").rglob("*") if file.is_file()]
    for target in ("canary_target", "canary_budget"):
        found += (folder / target / "_delta_log").rglob("*")
        for beside in ("_runs", "_checkpoint"):
            found += (folder / f"{target}{beside}").rglob("*")
    return [file for file in found if file.is_file()]


def _has_canary(file: Path) -> bool:
    has = CANARY.encode() in file.read_bytes()
    if has:
        print(f"canary: {file}", file=sys.stderr)
    return has
