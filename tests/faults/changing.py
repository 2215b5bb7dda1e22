"""A source that changes at random and the target that follows it, also where runs are killed."""

import sys
from pathlib import Path
from typing import Any

from lakescore import JobConfig
from lakescore.purge import purge_target
from lakescore.tables import load, version
from tests.faults.cases import STREAM_STEPS
from tests.faults.lab import Lab, said

# What happens to a source that changes; `new` is a key that no row has, `some` and `one` are
# keys that are there.
CHANGES = {
    "insert": "INSERT INTO {table} VALUES ({new}, 'New {step}', 0), ({new} + 1, NULL, {step})",
    "update": "UPDATE {table} SET text = concat('Now {step} ', id) WHERE id IN ({some})",
    "touch": "UPDATE {table} SET other = other + 1 WHERE id IN ({some})",
    "delete": "DELETE FROM {table} WHERE id IN ({some})",
    "move": "UPDATE {table} SET id = {new} WHERE id = {one}",
    "merge": (
        "MERGE INTO {table} t USING (SELECT explode(array({some}, {new})) AS id) s ON t.id = s.id"
        " WHEN MATCHED AND t.id % 3 = 0 THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET text = concat('Merged {step} ', t.id)"
        " WHEN NOT MATCHED THEN INSERT (id, text, other) VALUES (s.id, 'Merged {step}', 0)"
    ),
    "overwrite": (
        "INSERT OVERWRITE {table} SELECT /*+ REPARTITION(3) */ id,"
        " CASE WHEN id IN ({some}) THEN concat('Again {step} ', id) ELSE text END, other"
        " FROM {table}"
    ),
    "restore": "RESTORE TABLE {table} TO VERSION AS OF {before}",
}
WEIGHTS = {"overwrite": 1, "restore": 1}
USUAL = 4


def cdf_steps(lab: Lab, nth: int, outcomes: int) -> int:
    """Change a source at random, and then run the job; the target follows, and forgets.

    An outcome is a change, which holds if the run after it does. One run in four is killed first.
    """
    source = lab.source("changing", files=2, feed=True)
    max_files = lab.rng.choice((1, 2, 1000))
    settings = lab.settings(source, "followed", source={"changes": "cdf", "max_files": max_files})
    told: list[str] = []
    held = False
    try:
        if not Path(settings["target"]["table"]).exists():  # at first, or after a broken trial
            lab.run(settings)
        told += (_change(lab, source) for _ in range(outcomes))
        if lab.rng.random() < 0.25:
            step = lab.rng.choice(STREAM_STEPS)
            answer = lab.driver().run(settings, failpoint=step)
            told.append(f"a run killed at {step}: {answer}")
            # Changes that undo each other leave a run that has no micro-batch.
            assert answer.get("error") in (None, "died")
        lab.run(settings)
        held = (
            lab.holds(settings)
            and lab.rests(settings)
            and (outcomes < 5 or _forgets_deleted(lab, source, settings))
        )
    finally:
        if not held:
            lab.forget(settings)  # else each trial that follows would be broken too
            print(f"max_files {max_files}, after", *told, sep="\n  ", file=sys.stderr)
    return outcomes * held


def _change(lab: Lab, source: str) -> str:
    """Change a source somehow, and return how."""
    keys = [row.id for row in load(lab.spark, source).select("id").collect()] or [0]
    some = lab.rng.sample(keys, min(len(keys), lab.rng.randint(1, 3)))
    at = version(lab.spark, source)
    weights = [WEIGHTS.get(each, USUAL) for each in CHANGES]
    [change] = lab.rng.choices(list(CHANGES.values()), weights)
    sql = change.format(
        table=f"delta.`{source}`",
        new=max(keys) + 1,
        some=", ".join(map(str, some)),
        one=some[0],
        step=at + 1,
        before=at - 1,
    )
    lab.spark.sql(sql)
    return sql


def _forgets_deleted(lab: Lab, source: str, settings: dict[str, Any]) -> bool:
    """Delete a row that the target has, and tell whether a purge leaves nothing of it."""
    texts = load(lab.spark, source).where("trim(text) <> ''")
    lab.spark.sql(
        f"DELETE FROM delta.`{source}` WHERE id = {texts.selectExpr('max(id)').head()[0]}"
    )
    lab.run(settings)
    return lab.holds(settings) and _forgets(lab, settings)


def _forgets(lab: Lab, settings: dict[str, Any]) -> bool:
    """Purge the target, and tell whether no file of it has a text that its rows have no more."""
    target = settings["target"]["table"]

    def texts_in_files() -> set[Any]:
        files = [
            str(file) for file in Path(target).rglob("*.parquet") if "_delta_log" not in file.parts
        ]
        return {row[0] for row in lab.spark.read.parquet(*files).select("text").collect()}

    live = {row[0] for row in lab.target(settings).select("text").collect()}
    before = texts_in_files()
    purge_target(lab.spark, JobConfig.parse(settings), retain_hours=0)
    return said(
        before > live and texts_in_files() == live,
        f"{target}: {len(before)} texts in files, {len(live)} in rows; a purge left others",
    )
