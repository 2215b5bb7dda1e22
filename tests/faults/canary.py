"""A text that must not get out: planted in every row, with every kind of error forced.

Each error is to end as it should, or nothing would be shown by a search that finds no text after
it. That the search finds a text where there is one is shown first, by files of each kind.
"""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.faults.cases import POISON, REFUSED, TEXT_FAULTS
from tests.faults.lab import LOCAL, ROOT, STUB, Driver, Lab

CANARY = "Quuxenbaum"
ROWS = 1_000
# The word as any program may write it down, once all letters are small ones; a tokenizer's are.
WORDS = [
    *(CANARY.lower().encode(encoding) for encoding in ("utf-8", "utf-16-le")),
    CANARY.encode().hex().encode(),
    CANARY.encode().hex(" ").encode(),  # as Spark shows binary
]
LONG = "repeat(' and on', 30)"
# What becomes of the rows of `_rows_of_every_error`.
FAILED = {
    "null_text": 1,
    "blank_text": 1,
    "worker_lost": 1,
    "tokenizer_error": 125,
    "out_of_memory": 125,
    "too_long": 125,
    "invalid_unicode": 125,
    "non_finite": 125,
}
# How a run ends of which the target refuses a row.
REFUSED_BY_CHECK = ("RefusedRowsError", "a constraint of it refuses a row")
MAY_PASS = 1 + 125 + 125  # worker_lost, out_of_memory, non_finite
RAISED = "XRAISEDX"  # the stub raises an error that quotes such a text


def hits(lab: Lab, *, quick: bool) -> int:
    """Count the files that have the canary, and the errors that did not end as they should.

    `quick` forces the errors of rows and of tasks, and of tables the one that Spark would log, but
    neither the others nor those of the command line.
    """
    canary, driver = Canary(lab), lab.driver()
    canary.shows_that_it_searches()
    job = _rows_of_every_error(canary)
    if not quick:
        _retried_in_vain(canary, job)
    answer = driver.run(job, command="retry")
    canary.succeeds("retry", answer, rows_in=MAY_PASS, rows_scored=MAY_PASS)
    job = _in_a_task(canary, driver)
    _deleted_by_text(canary, driver)
    with small_disk(canary.folder / "disk") as disk:
        if not quick:
            _by_command_line(canary, job)
            _appended(canary, driver)
            _merged(canary, driver)
            if disk is not None:
                _full_disk(canary, driver, disk)
        return len(canary.wrong) + canary.found()


class Canary:
    """What was done in a lab with the canary in its tables, and what did not go as it should.

    Attributes:
        lab: where it is done.
        folder: for tables, and for files to search.
        wrong: a line for each error that was to come and did not, or another one did.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / "canary"
        self.wrong: list[str] = []
        self._answers: list[Any] = []
        self._with_rows: set[Path] = set()

    def plant(self, name: str, *, ids: range = range(ROWS), more: str = "''") -> str:
        """Append rows to a source, which is made if it is not there; `more` ends their texts."""
        rows = self.lab.spark.range(ids.start, ids.stop, ids.step, 1).selectExpr(
            "id", f"concat('{CANARY} ', id, {more}) AS text", "id % 3 AS other"
        )
        return self.save(rows, name)

    def save(self, rows: Any, name: str) -> str:
        """Append any rows to a source."""
        path = self.folder / "sources" / name
        self._with_rows.add(path)
        writer = rows.write.format("delta").mode("append")
        writer.option("delta.enableChangeDataFeed", "true").save(str(path))
        return str(path)

    def settings(self, source: str, target: str | Path, /, **groups: Any) -> dict[str, Any]:
        """Return the settings of a job to a target by its name, or at a path of its own."""
        path = self.folder / "targets" / target
        self._with_rows.add(path)
        return self.lab.settings(source, str(path), **groups)

    def succeeds(self, what: str, answer: Any, **wanted: Any) -> None:
        """Take a run's answer, which is to be a summary with these values."""
        self._answers.append(answer)
        self._say(what, answer, answer.items() >= wanted.items(), wanted)

    def fails(self, what: str, answer: Any, kinds: str | tuple[str, ...], *pieces: str) -> None:
        """Take a run's answer, which is to be an error of a kind, with pieces of its message."""
        self._answers.append(answer)
        of_kind = answer.get("error") in ((kinds,) if isinstance(kinds, str) else kinds)
        said = str(answer.get("message"))
        self._say(
            what, answer, of_kind and all(piece in said for piece in pieces), (kinds, *pieces)
        )

    def _say(self, what: str, answer: Any, is_it: bool, wanted: Any) -> None:
        print(f"canary, {what}: {'held' if is_it else 'BROKEN'}", file=sys.stderr, flush=True)
        if not is_it:
            self.wrong.append(f"{what}: {answer}, not {wanted}")

    def shows_that_it_searches(self) -> None:
        """Plant the canary in a file of each kind, and see that a search of it finds it."""
        folder = self.folder / "control"
        folder.mkdir(parents=True)
        text = f"a line before\n{CANARY} 7"
        for nth, word in enumerate(WORDS):
            (folder / f"{nth}.log").write_bytes(b"a line before\n" + word + b" 7")
        (folder / "whole.log").write_text(text)
        (folder / "rolled.log.gz").write_bytes(gzip.compress(text.encode()))
        with closing(sqlite3.connect(folder / "mlflow.db")) as database:
            database.execute("CREATE TABLE tags (value TEXT)")
            # The length of a page before it: the word is divided among two of them.
            database.execute("INSERT INTO tags VALUES (?)", ["x" * 4050 + CANARY * 10])
            database.commit()
        # As <target>_runs and a log's checkpoints are: compressed, words in maps and structs.
        bill = "array(map('error', concat(repeat('x', 9), value))) AS bills"
        bills = self.lab.spark.createDataFrame([(text,)] * 9, "value string").selectExpr(bill)
        bills.coalesce(1).write.parquet(str(folder / "target_runs"), compression="snappy")
        planted = [file for file in folder.rglob("[!._]*") if file.is_file()]
        for file in planted:
            if excerpt(file) is None:
                self.wrong.append(f"{file}: the canary in it is not found")
            file.unlink()
        if len(planted) != len(WORDS) + 4:
            self.wrong.append(f"not planted in every kind of file: {planted}")

    def found(self) -> int:
        """Say what was wrong and which files have the canary, and count those files."""
        (self.folder / "answers").write_text(json.dumps(self._answers))
        for line in self.wrong:
            print(f"canary: {line}", file=sys.stderr)
        found = {file: said for file in self._searched() if (said := excerpt(file)) is not None}
        for file, said in found.items():
            print(f"canary: is in {file}: {said!r}", file=sys.stderr)
        return len(found)

    def _searched(self) -> Iterator[Path]:
        """Yield all files of the lab but data files of sources and targets, and logs of sources.

        Nor those of a Spark that is at work, which go with it: what it shuffles is rows.

        Whatever else a table has beside it is searched: its log, its bills, its checkpoint.
        """
        sources = self.folder / "sources"
        for file in self.lab.folder.rglob("*"):
            is_data = self._with_rows & {*file.parents} and "_delta_log" not in file.parts
            is_of_spark = any(each.suffix == LOCAL for each in file.parents)
            if file.is_file() and not is_data and not is_of_spark and sources not in file.parents:
                yield file


def excerpt(file: Path) -> bytes | None:
    """Return what is around the canary in a file's bytes, or in what they are when read."""
    for part in map(bytes.lower, _contents(file)):
        for word in WORDS:
            if (at := part.find(word)) >= 0:
                return part[max(0, at - 99) : at + 40]
    return None


def _contents(file: Path) -> Iterator[bytes]:
    raw = file.read_bytes()
    yield raw
    if raw.startswith(b"PAR1"):
        yield repr(pq.read_table(pa.BufferReader(raw)).to_pylist()).encode()
    elif raw.startswith(b"\x1f\x8b"):
        yield gzip.decompress(raw)
    elif raw.startswith(b"SQLite format 3\0"):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            yield "\n".join(database.iterdump()).encode()


def _rows_of_every_error(canary: Canary) -> dict[str, Any]:
    """Score rows of which each code is the lot of some, and return the job."""
    lab = canary.lab
    text = (
        "CASE WHEN id = 1000 THEN NULL WHEN id = 1001 THEN encode(' ', 'UTF-8')"
        # One row alone kills its worker: each costs several processes.
        f" WHEN id = 7 THEN encode(concat(secret, ' {POISON}'), 'UTF-8')"
        f" WHEN id % 8 = 1 THEN encode(concat(secret, ' {REFUSED}'), 'UTF-8')"
        f" WHEN id % 8 = 2 THEN encode(concat(secret, {LONG}), 'UTF-8')"
        f" WHEN id % 8 = 3 THEN encode(concat(secret, {LONG}, {LONG}, {LONG}), 'UTF-8')"
        " WHEN id % 8 = 4 THEN concat(encode(secret, 'UTF-8'), X'FF')"
        " WHEN id % 8 = 5 THEN encode(concat(secret, ' \u00a7'), 'UTF-8')"
        " ELSE encode(secret, 'UTF-8') END"
    )
    rows = lab.spark.range(0, ROWS + 2, 1, 1).selectExpr("id", f"concat('{CANARY} ', id) AS secret")
    source = canary.save(rows.selectExpr("id", f"{text} AS text", "id % 3 AS other"), "rows")
    models = dict(lab.models) | {"entities": str(_not_finite(lab))}
    job = canary.settings(
        source,
        "rows",
        tasks={task: {"model": model} for task, model in models.items()},
        encoding={"long_text": "reject", "max_length": 128},
        source={"changes": "cdf"},
    )
    driver = lab.driver(stub=False, **TEXT_FAULTS)
    good = ROWS + 2 - sum(FAILED.values())
    answer = driver.run(job)
    canary.succeeds("rows", answer, rows_in=ROWS + 2, rows_scored=good, rows_failed=FAILED)
    # What an error says of its row is not to quote it.
    details = lab.spark.read.format("delta").load(job["target"]["table"]).select("error.detail")
    (canary.folder / "details").write_text(str(details.distinct().collect()))
    return job


def _retried_in_vain(canary: Canary, job: Any) -> None:
    """Let rows whose error may pass fail again, more of them than the job allows a run."""
    driver = canary.lab.driver(stub=False, **TEXT_FAULTS)
    answer = driver.run(job | {"limits": {"max_error_fraction": 0.5}}, command="retry")
    again = {code: FAILED[code] for code in ("worker_lost", "out_of_memory", "non_finite")}
    canary.succeeds("retry in vain", answer, rows_in=MAY_PASS, rows_failed=again)


def _deleted_by_text(canary: Canary, driver: Driver) -> None:
    """Let a run that appends meet a commit of which Delta says by what it was done: by a text."""
    source = canary.plant("deleted")
    job = canary.settings(source, "deleted")
    canary.succeeds("append before a deletion", driver.run(job), rows_in=ROWS)
    canary.lab.spark.sql(f"DELETE FROM delta.`{source}` WHERE text = '{CANARY} 7'")
    answer = driver.run(job)
    canary.fails("append of a deletion", answer, "TableError", "rows in it were changed or deleted")


def _appended(canary: Canary, driver: Driver) -> None:
    """Let runs that append fail, go on, and fail otherwise."""
    spark = canary.lab.spark
    source = canary.plant("appended")
    job = canary.settings(source, "appended")
    target = job["target"]["table"]
    answer = driver.run(job, failpoint="batch_staged:1:raise")
    canary.fails("a failpoint", answer, "RuntimeError", "failpoint batch_staged")
    answer = driver.run(job, command="purge")
    canary.fails("purge too early", answer, "TableError", "has scored and not committed")
    canary.succeeds("append", driver.run(job), rows_in=ROWS, rows_failed={})

    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT short CHECK (length(text) < 99)")
    canary.plant("appended", ids=range(ROWS, ROWS + 9), more=LONG)
    canary.fails("CHECK of an append", driver.run(job), *REFUSED_BY_CHECK)
    spark.sql(f"ALTER TABLE delta.`{target}` DROP CONSTRAINT short")
    canary.succeeds("append again", driver.run(job), rows_in=9)

    with_nulls = canary.settings(source, "not_null")
    _make_not_null(spark, target, with_nulls["target"]["table"])
    nulls = spark.range(ROWS + 9, ROWS + 18, 1, 1)
    text = f"concat('{CANARY} ', id) AS text"
    canary.save(nulls.selectExpr("id", text, "CAST(NULL AS bigint) AS other"), "appended")
    canary.fails("NOT NULL of an append", driver.run(with_nulls), *REFUSED_BY_CHECK)
    table = f"delta.`{with_nulls['target']['table']}`"
    spark.sql(f"ALTER TABLE {table} ALTER COLUMN other DROP NOT NULL")
    canary.succeeds("NOT NULL dropped", driver.run(with_nulls), rows_in=9)
    canary.succeeds("append of nulls", driver.run(job), rows_in=9)

    spark.sql(f"UPDATE delta.`{source}` SET text = concat(text, ' now') WHERE id = 50")
    answer = driver.run(job)
    canary.fails("append of changes", answer, "TableError", "rows in it were changed or deleted")
    spark.sql(f"INSERT INTO delta.`{source}` SELECT * FROM delta.`{source}` WHERE id < 5")
    answer = driver.run(canary.settings(source, "doubles", source={"max_files": 99}))
    canary.fails("double keys", answer, "RefusedRowsError", "5 keys (id) are there more than once")
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (late string)")
    canary.fails("drift", driver.run(job), "TableError", "its column 'late' is missing")


def _merged(canary: Canary, driver: Driver) -> None:
    """Let a run that merges fail; score again what it wrote, forget a part of it, and purge."""
    spark = canary.lab.spark
    source = canary.plant("merged")
    job = canary.settings(source, "merged", source={"changes": "cdf"})
    target = job["target"]["table"]
    canary.succeeds("merge", driver.run(job), rows_in=ROWS)
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT short CHECK (length(text) < 99)")
    spark.sql(f"UPDATE delta.`{source}` SET text = concat(text, {LONG}) WHERE id % 100 = 3")
    answer = driver.run(job)
    canary.fails("CHECK of a merge", answer, *REFUSED_BY_CHECK)
    spark.sql(f"ALTER TABLE delta.`{target}` DROP CONSTRAINT short")
    canary.succeeds("merge again", driver.run(job), rows_in=10)

    other = {"entities": {"model": str(canary.lab.folder / "not_finite")}}
    answer = driver.run(job | {"tasks": job["tasks"] | other}, command="rescore")
    canary.succeeds("rescore", answer, rows_in=ROWS, rows_scored=ROWS)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id % 2 = 0")
    canary.succeeds("deletes", driver.run(job), rows_deleted=ROWS // 2)
    canary.succeeds("purge", driver.run(job, command="purge"), target=target, retain_hours=0)
    spark.sql(f"INSERT INTO delta.`{source}` SELECT * FROM delta.`{source}` WHERE id < 6")
    answer = driver.run(job)
    canary.fails("keys that are there", answer, "RefusedRowsError", "3 of 3 new rows have a key")


def _in_a_task(canary: Canary, driver: Driver) -> dict[str, Any]:
    """Let a run end over its budget, and let a task raise an error that quotes its text.

    That is as often as Spark tries it. Return the job.
    """
    source = canary.plant("raised")
    blank = canary.lab.spark.range(ROWS, ROWS + 100, 1, 1)
    canary.save(blank.selectExpr("id", "' ' AS text", "id % 3 AS other"), "raised")
    job = canary.settings(source, "raised", source={"max_files": 9})
    answer = driver.run(job | {"limits": {"max_error_fraction": 0.05}})
    of_rows = f"100 of {ROWS + 100:,} rows failed (blank_text 100)"
    canary.fails("over the budget", answer, "BudgetError", of_rows)
    canary.succeeds("within it", driver.run(job), rows_in=ROWS + 100)
    canary.plant("raised", ids=range(2 * ROWS, 2 * ROWS + 9), more=f"' {RAISED}'")
    answer = driver.run(job)
    # Before Spark 4 it depends on the stage that fails which of the two it is.
    kinds = ("PythonException", "Py4JJavaError")
    canary.fails("an error in a task", answer, kinds, "WorkerError: ValueError in ")
    return job


def _by_command_line(canary: Canary, job: Any) -> None:
    """Keep what the command line prints of an error in a task."""
    folder = canary.folder / "command_line"
    folder.mkdir()
    (folder / "job.yml").write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [sys.executable, "-m", "lakescore.cli", "score", "job.yml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (STUB, ROOT / "lib", ROOT)))},
        capture_output=True,
        text=True,
    )
    (folder / "printed").write_text(done.stdout + done.stderr)
    said = {"error": done.stderr.splitlines()[-1], "message": done.stderr}
    canary.fails(
        "the command line's error in a task",
        said,
        "--debug shows all of it",
        "WorkerError: ValueError in _results",
    )


def _full_disk(canary: Canary, driver: Driver, disk: Path) -> None:
    """Let a run find its disk full, and the next one room."""
    source = canary.plant("full")
    job = canary.settings(source, disk / "target")
    canary.succeeds("small disk", driver.run(job), rows_in=ROWS)
    canary.plant("full", ids=range(ROWS, 2 * ROWS))
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):  # until it is full
        while file.write(b"x" * 4096):
            pass
    os.truncate(filler, filler.stat().st_size - 8 * 1024)
    canary.fails("full disk", driver.run(job), "TableError", "the disk is full")
    filler.unlink()
    canary.succeeds("small disk again", driver.run(job), rows_in=ROWS)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a disk of four megabytes; None where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=100k", "lakescore", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
        refused = mounted.stderr.strip() if mounted.returncode else ""
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        print(f"canary: no full disk, since none can be mounted: {refused}", file=sys.stderr)
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _make_not_null(spark: Any, like: str, table: str) -> None:
    """Make a target as the job makes it, with a column that is never null: only a new one can."""
    from delta.tables import DeltaTable

    builder = DeltaTable.create(spark).location(table)
    for each in spark.read.format("delta").load(like).schema:
        builder = builder.addColumn(each.name, each.dataType, nullable=each.name != "other")
    name = "delta.dataSkippingStatsColumns"
    properties = DeltaTable.forPath(spark, like).detail().select("properties").first()[0]
    builder.property(name, properties[name]).execute()


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
