"""The kinds of faults; each case does one trial and says whether the oracle held."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.lab import ROWS_PER_FILE, Lab

# Every named step of a run, and how often one run of three micro-batches reaches it.
STEPS = {
    "planned": 1,
    "target_ready": 1,
    "batch_begun": 3,
    "batch_staged": 3,
    "batch_checked": 3,
    "batch_committed": 3,
    "query_ended": 1,
    "stage_removed": 1,
    "bill_written": 1,
}
SNAPSHOT_STEPS = ("todo_written", "batch_committed", "todo_removed", "stage_removed")
# How long a row takes where something is to happen meanwhile.
STUB_MS = "15"
# What texts do to a real model, by a word in them or by their length.
POISON, REFUSED, TOO_WIDE = "XPOISONX", "XREFUSEDX", 60
TEXT_FAULTS = {
    "LAKESCORE_POISON": POISON,
    "LAKESCORE_TOKENIZER_ERROR": REFUSED,
    "LAKESCORE_OUT_OF_MEMORY_FROM": str(TOO_WIDE),
}


def driver_kills(lab: Lab, trials: int) -> Iterator[bool]:
    """Kill the driver at each named step, in the modes that append and that merge."""
    sources = {
        changes: lab.source(f"kill_{changes}", files=3, feed=changes == "cdf")
        for changes in ("append", "cdf", "snapshot")
    }
    points = [
        (changes, step, nth)
        for step, times in STEPS.items()
        for nth in range(1, times + 1)
        for changes in ("append", "cdf")
    ]
    points += [("snapshot", step, 1) for step in SNAPSHOT_STEPS]
    lab.rng.shuffle(points)
    for trial in range(trials):
        changes, step, nth = points[trial % len(points)]
        settings = lab.settings(sources[changes], f"killed_{trial}", source={"changes": changes})
        driver = lab.driver(LAKESCORE_FAILPOINT=f"{step}:{nth}")
        driver.start(settings)
        held = driver.was_killed()
        yield held and lab.recovers(settings)
        lab.forget(settings)


def worker_kills(lab: Lab, trials: int) -> Iterator[bool]:
    """Kill a Python worker at random, while the job goes on."""
    source = lab.source("workers", files=3)
    for trial in range(trials):
        driver = lab.driver(LAKESCORE_STUB_MS=STUB_MS)
        settings = lab.settings(source, f"workers_{trial}")
        driver.start(settings)
        victims = driver.wait_for_workers()
        time.sleep(lab.rng.uniform(0, 2))
        _kill(lab.rng.choice(driver.workers() or victims))
        yield _went_well(driver.answer()) and lab.recovers(settings)
        lab.forget(settings)


def executor_kills(lab: Lab, trials: int) -> Iterator[bool]:
    """Kill one of two executors at random, while the job goes on."""
    source = lab.source("executors", files=3)
    for trial in range(trials):
        driver = lab.driver(master="local-cluster[2,1,1024]", LAKESCORE_STUB_MS=STUB_MS)
        settings = lab.settings(source, f"executors_{trial}")
        driver.start(settings)
        driver.wait_for_workers()
        time.sleep(lab.rng.uniform(0, 2))
        _kill(lab.rng.choice(driver.descendants("CoarseGrainedExecutorBackend")))
        yield _went_well(driver.answer()) and lab.recovers(settings)
        lab.forget(settings)


def double_starts(lab: Lab, trials: int) -> Iterator[bool]:
    """Start the same job twice at once: one wins, and the other says so or finds nothing new.

    Every other trial is without the lock of this machine's disk, which other stores do not have.
    """
    changes = ("append", "cdf")
    sources = {each: lab.source(f"twice_{each}", files=3, feed=each == "cdf") for each in changes}
    for trial in range(trials):
        mode = changes[trial // 2 % 2]
        settings = lab.settings(sources[mode], f"twice_{trial}", source={"changes": mode})
        drivers = [lab.driver(nth, LAKESCORE_STUB_MS=STUB_MS) for nth in range(2)]
        for driver in drivers:
            driver.start(settings, unlocked=trial % 2 == 1)
            time.sleep(lab.rng.choice((0.0, 0.0, lab.rng.uniform(0, 3))))
        answers = [driver.answer() for driver in drivers]
        errors = [each["error"] for each in answers if "error" in each]
        if not (held := errors in ([], ["BusyError"])):
            print(f"double start: {answers}", file=sys.stderr)
        yield held and lab.holds(settings) and lab.recovers(settings)
        lab.forget(settings)


def concurrent_commits(lab: Lab, commits: int) -> Iterator[bool]:
    """Let jobs write one target at once, half by MERGE and half by append; none loses a commit.

    There are four of them, or two where each has one commit to make.
    """
    modes = ("append", "cdf") * (1 if commits == 1 else 2)
    jobs = []
    for nth, mode in enumerate(modes):
        first = nth * commits * ROWS_PER_FILE
        source = lab.source(f"shared_{nth}", files=commits, feed=mode == "cdf", first=first)
        own = {"checkpoint": f"{source}_checkpoint"}
        jobs.append(lab.settings(source, "shared", source={"changes": mode}, target=own))
    drivers = [lab.driver(nth, LAKESCORE_STUB_MS=STUB_MS) for nth in range(len(modes))]
    for driver, job in zip(drivers, jobs, strict=True):
        driver.start(job)
    answers = [driver.answer() for driver in drivers]
    target = lab.spark.read.format("delta").load(jobs[0]["target"]["table"])
    keys = target.select("id").collect()
    expected = list(range(len(modes) * commits * ROWS_PER_FILE))
    if not (is_whole := sorted(row.id for row in keys) == expected):
        print(
            f"concurrent commits: {len(keys)} of {len(expected)} rows; {answers}", file=sys.stderr
        )
    for answer in answers:
        all_in = answer.get("rows_in") == commits * ROWS_PER_FILE
        for _ in range(commits):
            yield is_whole and all_in
    lab.forget(jobs[0])


def poison_rows(lab: Lab, trials: int) -> Iterator[bool]:
    """Let a text kill its worker, with real models: its row alone fails."""
    for trial in range(trials):
        source = lab.source(f"poison_{trial}", files=1)
        key = lab.rng.randrange(100, 130)
        lab.spark.range(key, key + 1).selectExpr(
            "id", f"'a {POISON} b' AS text", "0L AS other"
        ).write.format("delta").mode("append").save(source)
        settings = lab.settings(source, f"poisoned_{trial}")
        driver = lab.driver(stub=False, **TEXT_FAULTS)
        answer = driver.run(settings)
        target = lab.spark.read.format("delta").load(settings["target"]["table"])
        lost = target.where("error.code = 'worker_lost'").select("id").collect()
        failed = target.where("error.code NOT IN ('null_text', 'blank_text')").count()
        yield (
            [row.id for row in lost] == [key]
            and failed == 1
            and target.count() == ROWS_PER_FILE + 1 == answer["rows_in"]
        )
        lab.forget(settings)


def cdf_steps(lab: Lab, steps: int) -> Iterator[bool]:
    """Change a source at random, with runs in between; the target follows, and forgets."""
    source = lab.source("changing", files=2, feed=True)
    settings = lab.settings(source, "followed", source={"changes": "cdf", "max_files": 1000})
    table = f"delta.`{source}`"
    next_key = 2 * ROWS_PER_FILE
    lab.run(settings)
    held = lab.holds(settings)
    for step in range(steps):
        keys = [
            row.id for row in lab.spark.read.format("delta").load(source).select("id").collect()
        ]
        chosen = lab.rng.sample(keys, min(len(keys), lab.rng.randint(1, 3)))
        among = ", ".join(map(str, chosen)) or "-1"
        action = lab.rng.choice(("insert", "update", "delete", "move"))
        if action == "insert" or not keys:
            lab.spark.sql(f"INSERT INTO {table} VALUES ({next_key}, 'Text {step}', {step})")
            next_key += 1
        elif action == "update":
            lab.spark.sql(
                f"UPDATE {table} SET text = concat('Now {step} ', id) WHERE id IN ({among})"
            )
        elif action == "delete":
            lab.spark.sql(f"DELETE FROM {table} WHERE id IN ({among})")
        else:  # one row gets another key
            lab.spark.sql(f"UPDATE {table} SET id = {next_key} WHERE id = {chosen[0]}")
            next_key += 1
        if lab.rng.random() < 0.05:
            lab.run(settings)
            held &= lab.holds(settings)
    lab.spark.sql(f"DELETE FROM {table} WHERE id % 7 = 0")
    held &= lab.recovers(settings)
    held &= _forgets(lab, settings)
    for _ in range(steps):
        yield held


def _forgets(lab: Lab, settings: dict[str, Any]) -> bool:
    """Purge the target, and tell whether no file of it has a text that its rows have no more."""
    from lakescore import JobConfig
    from lakescore.purge import purge_target

    target = settings["target"]["table"]

    def texts_in_files() -> set[Any]:
        files = [
            str(file) for file in Path(target).rglob("*.parquet") if "_delta_log" not in file.parts
        ]
        return {row[0] for row in lab.spark.read.parquet(*files).select("text").collect()}

    live = {row[0] for row in lab.spark.read.format("delta").load(target).select("text").collect()}
    before = texts_in_files()
    purge_target(lab.spark, JobConfig.parse(settings), retain_hours=0)
    return before > live and texts_in_files() == live


def _went_well(answer: Any) -> bool:
    if "error" in answer:
        print(f"a run was to go on: {answer}", file=sys.stderr)
    return "error" not in answer


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile: nothing was lost
