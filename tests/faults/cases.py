"""The kinds of faults: each case does one trial, and returns how many of its outcomes held.

It is given the trial's number and how many outcomes it has: most have one.
"""

import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from lakescore.tables import version
from tests.faults.lab import ROWS_PER_FILE, Count, Driver, Lab, ancestor, said
from tests.tiny_models import tiny_model

STREAM_STEPS = (
    "planned", "target_ready", "batch_begun", "batch_staged", "batch_checked", "batch_committed",
    "query_ended", "stage_removed", "bill_written",
)  # fmt: skip
COMPARED_STEPS = (
    "planned", "target_ready", "todo_written", "batch_begun", "batch_staged", "batch_checked",
    "batch_committed", "todo_removed", "stage_removed", "bill_written",
)  # fmt: skip
# A job by how it reads and writes, and the named steps that its run reaches.
MODES = {
    "append": STREAM_STEPS,
    "cdf": STREAM_STEPS,
    "snapshot": COMPARED_STEPS,
    "overwrite": COMPARED_STEPS,
    "rescore": COMPARED_STEPS,
    "retry": ("batch_staged", "batch_committed"),  # all else is as with rescore
}
POINTS = [(mode, step) for mode, steps in MODES.items() for step in steps]
STREAMS = ("append", "cdf")
# Where a run that dies has a commit which it has not noted yet: the next one has its rows too.
NOT_NOTED = {
    ("append", "batch_committed"),
    ("cdf", "batch_committed"),
}
# How long a row takes where something is to happen meanwhile.
STUB_MS = "100"
FILES = 3
# Arrow batches of a run: a micro-batch for each file, in two tasks.
BATCHES = 2 * FILES
ATTEMPTS = 5
JOBS = 4
# What texts do to a real model, by a word in them or by their length.
POISON, REFUSED, TOO_WIDE = "XPOISONX", "XREFUSEDX", 60
TEXT_FAULTS = {
    "LAKESCORE_POISON": POISON,
    "LAKESCORE_TOKENIZER_ERROR": REFUSED,
    "LAKESCORE_OUT_OF_MEMORY_FROM": str(TOO_WIDE),
}


def worker_kills(lab: Lab, nth: int, outcomes: int) -> int:
    """Kill a Python worker while it scores, at a random moment; the job goes on."""
    driver = lab.driver(LAKESCORE_STUB_MS=STUB_MS)
    return _goes_on(lab, driver, f"workers_{nth}", lambda worker: worker, "Lost task")


def executor_kills(lab: Lab, nth: int, outcomes: int) -> int:
    """Kill one of two executors while a worker of it scores; the job goes on."""
    driver = lab.driver(master="local-cluster[2,1,1024]", LAKESCORE_STUB_MS=STUB_MS)

    def executor(worker: int) -> int:
        return ancestor(worker, "CoarseGrainedExecutorBackend")

    return _goes_on(lab, driver, f"executors_{nth}", executor, "Lost executor")


def _goes_on(lab: Lab, driver: Driver, name: str, victim: Callable[[int], int], trace: str) -> bool:
    """Kill the victim that belongs to a worker at work, and tell whether its loss cost nothing.

    A run that ended before it was struck, by what Spark's log says, is done again.
    """
    settings = lab.settings(lab.source("struck", files=FILES), name)
    for _ in range(ATTEMPTS):
        lab.forget(settings)
        driver.scored.clear()
        before = driver.log.stat().st_size
        driver.start(settings)
        begun = lab.rng.randint(1, BATCHES)
        driver.wait_until(lambda: len(driver.scored.lengths) >= begun)  # noqa: B023  # at once
        time.sleep(lab.rng.uniform(0, float(STUB_MS) / 1000 * ROWS_PER_FILE / 2))
        if at_work := driver.scored.at_work:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it has ended meanwhile
                os.kill(victim(lab.rng.choice(at_work)), signal.SIGKILL)
        answer = driver.answer()
        if trace in driver.log.read_bytes()[before:].decode(errors="replace"):
            break
    else:
        return said(False, f"{name}: nothing was struck in {ATTEMPTS} runs")
    rows = FILES * ROWS_PER_FILE
    return (
        said(answer.get("rows_in") == rows < driver.scored.rows, f"{name}: {answer}")
        and _adds_up(lab, settings, rows, rows)
        and lab.holds(settings)
        and lab.rests(settings)
    )


def _adds_up(lab: Lab, settings: dict[str, Any], rows: int, billed: int, clean: str = "") -> bool:
    """Tell whether `rows` were scored or failed, by the target's rows, and `billed` by the bills.

    Rows and bill of the run `clean`, which came before the fault, do not count.
    """
    found = lab.count(lab.target(settings).where(f"run_id <> '{clean}'"))
    bills = [count for run, count in lab.billed(settings).items() if run != clean]
    in_bills = sum(count.rows for count in bills)
    failed = sum((Counter(count.failed) for count in bills), Counter[str]())
    in_all = Count(sum(count.scored for count in bills), dict(failed))
    same = in_bills != rows or in_all == found
    return said(
        (found.rows, in_bills, same) == (rows, billed, True),
        f"{settings['target']['table']}: {found} for {rows} rows, {bills} for {billed} billed",
    )


def driver_kills(lab: Lab, nth: int, outcomes: int) -> int:
    """Kill the driver at a named step, in one of the modes; the next run makes up for it."""
    if nth % len(POINTS) == 0:
        lab.rng.shuffle(POINTS)
    mode, step = POINTS[nth % len(POINTS)]
    settings, rows, handled, clean = _prepared(lab, mode, f"kill_{nth}")
    command = mode if mode in ("rescore", "retry") else "score"
    is_repeated = mode != "overwrite" and step.startswith("batch_")
    step_nth = f"{step}:{lab.rng.randint(1, FILES if mode in STREAMS else 2) if is_repeated else 1}"
    driver = lab.driver()
    driver.scored.clear()
    driver.start(settings, command=command, failpoint=step_nth)
    if not said(driver.was_killed(), f"{mode} was not killed at {step_nth}"):
        return False

    # What was committed and noted is not done again: of that the target alone tells.
    done = 0
    if Path(settings["target"]["table"]).exists():
        at = version(lab.spark, settings["target"]["table"]) - ((mode, step) in NOT_NOTED)
        done = lab.target(settings, version=at).where(f"run_id <> '{clean}'").count()
    lab.scored.clear()
    again = lab.run(settings, command=command)
    scored = lab.scored.rows
    if mode in STREAMS:  # nothing is scored twice: what was staged is there still
        scores = driver.scored.rows + scored == handled
    else:  # what an overwrite leaves out no scorer is handed
        left_out = 0 if mode == "overwrite" else again.rows_deleted
        scores = scored == again.rows_in + again.rows_refreshed + left_out
    billed = rows - done + (rows if step == "bill_written" else 0)
    held = (
        said(
            scores and again.rows_in == rows - done,
            f"after it: {again}; {rows - done} of {rows} rows were left, of {handled} handled "
            f"{driver.scored.rows} and then {scored} were scored",
        )
        and _adds_up(lab, settings, rows, billed, clean)
        and lab.holds(settings)
        and lab.rests(settings, command=command)
    )
    lab.forget(settings)
    return said(held, f"this was {mode} killed at {step_nth}")


def _prepared(lab: Lab, mode: str, name: str) -> tuple[dict[str, Any], int, int, str]:
    """Make a job with something to do.

    Returns its settings, the rows that are to be scored, those that a scorer is handed (deleted
    and refreshed ones too, without their text), and the run that came before.
    """
    source = lab.source(name, files=FILES, feed=mode == "cdf")
    changes = mode if mode in STREAMS else "snapshot"
    # A snapshot is divided by bytes into two steps at least, a stream into its commits.
    small = {"changes": changes, "max_bytes": 2_000}
    settings = lab.settings(source, f"{name}_target", source=small)
    all_rows = FILES * ROWS_PER_FILE
    if mode == "append":
        return settings, all_rows, all_rows, ""
    if mode == "overwrite":
        settings["target"]["write"] = "overwrite"
    large = {"max_files": 1_000, "max_bytes": 2**20}
    whole = settings | {"source": settings["source"] | large}
    clean = lab.run(whole).mlflow_run_id
    if mode == "rescore":
        newer = {"model": str(tiny_model(lab.folder / "newer", seed=5))}
        settings["tasks"] |= {"entities": newer}
        return settings, all_rows, all_rows, clean
    if mode == "retry":
        lab.spark.sql(
            f"UPDATE delta.`{settings['target']['table']}` SET entities = NULL, sentiment = NULL, "
            "n_tokens = 0, error = named_struct('code', 'worker_lost', 'detail', 'gone') "
            "WHERE id < 10 AND error IS NULL"
        )
        settings["source"]["max_bytes"] = 200  # they are few
        lost = lab.target(settings).where("error.code = 'worker_lost'").count()
        return settings, lost, lost, clean
    table = f"delta.`{source}`"
    lab.spark.sql(f"UPDATE {table} SET text = concat('Now ', id) WHERE id < 10")
    lab.spark.sql(f"UPDATE {table} SET other = other + 1 WHERE id BETWEEN 30 AND 34")
    lab.spark.sql(f"DELETE FROM {table} WHERE id BETWEEN 60 AND 66")
    lab.add(source, all_rows, all_rows + ROWS_PER_FILE, feed=mode == "cdf")
    if mode == "overwrite":
        rows = all_rows - 7 + ROWS_PER_FILE
        return settings, rows, rows, clean
    return settings, 10 + ROWS_PER_FILE, 10 + 5 + 7 + ROWS_PER_FILE, clean


def double_starts(lab: Lab, nth: int, outcomes: int) -> int:
    """Start the same job twice: one has the rows, and the other says so or finds nothing new.

    Every other trial is without the lock of this machine's disk, which other stores do not have.
    Of twelve trials the first six start the second run once the first one scores.
    """
    is_unlocked, mode = nth % 2 == 1, ("append", "cdf", "snapshot")[nth // 2 % 3]
    is_overlapping = nth // 6 % 2 == 0
    source = lab.source(f"twice_{mode}", files=FILES, feed=mode == "cdf")
    settings = lab.settings(source, f"twice_{nth}", source={"changes": mode})
    first = lab.driver(LAKESCORE_STUB_MS=STUB_MS)
    # Where the lock refuses the second one before it scores, any driver will do.
    is_refused = is_overlapping and not is_unlocked
    second = lab.driver() if is_refused else lab.driver(1, LAKESCORE_STUB_MS=STUB_MS)
    for driver in (first, second):
        driver.scored.clear()
    first.start(settings, unlocked=is_unlocked)
    if is_overlapping:
        first.wait_until(lambda: bool(first.scored.at_work))
    else:
        time.sleep(lab.rng.choice((0.0, lab.rng.uniform(0, 3))))
    second.start(settings, unlocked=is_unlocked)
    answers = [driver.answer() for driver in (first, second)]
    refused = [each["message"] for each in answers if each.get("error") == "BusyError"]
    rows_in = [each["rows_in"] for each in answers if "rows_in" in each]
    rows = FILES * ROWS_PER_FILE
    scored = first.scored.rows + second.scored.rows
    held = all("another run of this job" in each for each in refused)
    held = held and len(refused) + len(rows_in) == 2 and sum(rows_in) == rows
    held = held and (len(refused) == 1 or 0 in rows_in)
    if not is_unlocked:
        held = held and scored == rows
        if is_overlapping:  # the second one cannot but meet the lock
            held = held and "another run of this job is at work" in "".join(refused)
    held = (
        said(held, f"double start, {mode}, unlocked={is_unlocked}: {answers}; {scored} rows scored")
        and _adds_up(lab, settings, rows, rows)
        and lab.holds(settings)
        and lab.rests(settings)
    )
    lab.forget(settings)
    return held


def concurrent_commits(lab: Lab, nth: int, outcomes: int) -> int:
    """Let four jobs write one target at once, half by MERGE and half by append.

    They are threads of one process, whose log store is atomic there: no lock keeps them apart, and
    Delta's own conflicts are met. An outcome is a commit that is in the target's history once, with
    its rows whole in the target.
    """
    commits = outcomes // JOBS
    jobs = []
    for job in range(JOBS):
        mode, first = STREAMS[job % 2], job * commits * ROWS_PER_FILE
        source = lab.source(f"shared_{job}", files=commits, feed=mode == "cdf", first=first)
        own = {"checkpoint": f"{source}_checkpoint"}
        jobs.append(lab.settings(source, "shared", source={"changes": mode}, target=own))
    rows = JOBS * commits * ROWS_PER_FILE
    driver = lab.driver(LAKESCORE_STUB_MS=STUB_MS)
    driver.scored.clear()
    answer = driver.run(jobs)
    for each in answer["answers"]:
        said(each.get("rows_in") == commits * ROWS_PER_FILE, f"concurrent commits: {each}")
    conflicts = answer["conflicts"].count(jobs[0]["target"]["table"])
    scored = driver.scored.rows
    once = said(  # one commit each may well miss the others
        (conflicts > 0 or commits == 1) and scored == rows,
        f"concurrent commits: {conflicts} conflicts, {scored} of {rows} rows scored",
    )
    history = lab.spark.sql(f"DESCRIBE HISTORY delta.`{jobs[0]['target']['table']}`")
    notes = [json.loads(row[0]) for row in history.select("userMetadata").collect() if row[0]]
    made = [note for note in notes if "app" in note]  # not those of a job that is recorded
    found = _by_file(lab.rows(lab.target(jobs[0])))
    held = 0
    for job, settings in enumerate(jobs):
        expected = _by_file(lab.expected(settings))
        run = answer["answers"][job].get("mlflow_run_id")
        apps = {each["app"] for each in made if each["run_id"] == run}
        for number in range(commits):
            file = job * commits + number
            times = [each["app"] in apps and each["number"] == number for each in made].count(True)
            held += said(
                len(apps) == times == 1 and found[file] == expected[file],
                f"commit {number} of job {job}: {times} times, {len(found[file])} rows",
            )
    return held if once and _adds_up(lab, jobs[0], rows, rows) else 0


def _by_file(rows: Sequence[str]) -> dict[int, list[str]]:
    """Divide rows by the file of the source that they are of."""
    files = defaultdict(list)
    for row in rows:
        files[json.loads(row)["id"] // ROWS_PER_FILE].append(row)
    return files


def poison_rows(lab: Lab, nth: int, outcomes: int) -> int:
    """Let a text kill its worker, with real models: its row alone fails."""
    source = lab.source(f"poison_{nth}", files=1)
    key = lab.rng.randrange(100, 130)
    lab.spark.range(key, key + 1).selectExpr(
        "id", f"'a {POISON} b' AS text", "0L AS other"
    ).write.format("delta").mode("append").save(source)
    # All rows in flight at once, so that an isolation which takes the others along would show.
    together = {"max_files": 9, "partitions": 1}
    settings = lab.settings(source, f"poisoned_{nth}", source=together)
    answer = lab.driver(stub=False, **TEXT_FAULTS).run(settings)
    found = dict(lab.target(settings).select("id", "error.code").collect())
    count = lab.count(lab.target(settings))
    rows = ROWS_PER_FILE + 1
    history = lab.spark.sql(f"DESCRIBE HISTORY delta.`{settings['target']['table']}`")
    held = (
        history.where("operation = 'WRITE'").count() == 1
        and (sorted(found), found[key]) == ([*range(ROWS_PER_FILE), key], "worker_lost")
        and count.failed == {"worker_lost": 1, "null_text": 3, "blank_text": 3}
        and (answer.get("rows_in"), answer.get("rows_scored")) == (rows, count.scored)
    )
    return said(held, f"poison {key}: {answer}; {count}, {found}") and _adds_up(
        lab, settings, rows, rows
    )
