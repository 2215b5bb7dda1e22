"""Write the demo's messages as a Delta table: python demo/make_table.py [--rows 2400].

Beside it goes a table `labelled`: a few sentences whose names are marked, to evaluate a model on.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lib")]

from demo.messages import Message, messages  # noqa: E402
from lakescore.session import local_session  # noqa: E402

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LABELLED = Path(__file__).with_name("labelled.txt")
SCHEMA = "id bigint, channel string, country string, created_at timestamp, text string"
FILES = 6  # so that a job which reads file by file has some progress to show


def main() -> int:
    """Make the table, or what is missing at its end; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="demo/data/messages", metavar="PATH")
    parser.add_argument("--rows", default=2400, type=int, metavar="N")
    parser.add_argument("--seed", default=7, type=int, metavar="S")
    arguments = parser.parse_args()
    path = Path(arguments.table).resolve()
    wanted = list(messages(arguments.rows, arguments.seed))
    with local_session(app_name="lakescore demo") as spark:
        there = texts(spark, path)
        if there != [(row.id, row.text) for row in wanted[: len(there)]]:
            print(
                f"{arguments.table}: holds other rows; nothing was written: remove the folder, or "
                "name another one with --table",
                file=sys.stderr,
            )
            return 1
        append(spark, path, wanted[len(there) :])
        frame = spark.createDataFrame(list(labelled()), "tokens array<string>, tags array<string>")
        beside = path.with_name("labelled")
        frame.coalesce(1).write.format("delta").mode("overwrite").save(str(beside))
    if len(there) == len(wanted):
        print(f"{arguments.table}: has these {len(wanted):,} messages already; left as it is")
    else:
        print(f"{arguments.table}: {len(wanted) - len(there):,} messages written")
    return 0


def texts(spark: "SparkSession", path: Path) -> list[tuple[int, str | None]]:
    """Return the ids and texts that are there, at the driver: the demo's table is small."""
    if not (path / "_delta_log").is_dir():
        return []
    rows = spark.read.format("delta").load(str(path)).select("id", "text").orderBy("id")
    return [(row["id"], row["text"]) for row in rows.collect()]


def labelled() -> Iterator[tuple[list[str], list[str]]]:
    """Yield the tokens and the BIO tags of each labelled sentence."""
    for line in LABELLED.read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        tokens: list[str] = []
        tags: list[str] = []
        kind, prefix = "", ""
        for word in line.split():
            if word.startswith("["):
                kind, prefix = word[1:], "B-"
                continue
            tokens.append(word.rstrip("]") if kind else word)
            tags.append(prefix + kind if kind else "O")
            prefix = "I-"
            if word.endswith("]"):
                kind = ""
        yield tokens, tags


def append(spark: "SparkSession", path: Path, rows: list[Message]) -> None:
    """Write the rows in order, each file in a commit of its own, as a source grows in life."""
    size = max(math.ceil(len(rows) / FILES), 1)
    for begin in range(0, len(rows), size):
        frame = spark.createDataFrame(rows[begin : begin + size], SCHEMA).coalesce(1)
        frame.write.format("delta").mode("append").save(str(path))


if __name__ == "__main__":
    sys.exit(main())
