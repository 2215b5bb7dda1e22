"""A driver of its own for test_isolation_spark: Spark reads its settings when it starts."""

import json
import sys
from pathlib import Path
from typing import Any

import lakescore
from lakescore.session import local_session
from tests.jobs import BRIEF_JVM


def main(folder: Path, entity_model: str, sentiment_model: str) -> None:
    """Score texts of which some kill their worker; write what came out as JSON."""
    config = lakescore.JobConfig.parse(
        {
            "source": {"key": "id", "text": "text"},
            "tasks": {
                "entities": {"model": entity_model},
                "sentiment": {"model": sentiment_model},
            },
        }
    )
    rows = [(nth, f"Maria {nth} lives in Lisbon {'far ' * (nth % 7)}") for nth in range(200)]
    # Two in one partition, next to each other and apart.
    poisoned = [(nth, text + " XPOISONX" * (nth in (30, 31, 77))) for nth, text in rows]
    with local_session(
        master="local[2,4]", settings=BRIEF_JVM, log_file=folder / "spark.log"
    ) as spark:

        def scored(texts: list[tuple[int, str]]) -> Any:
            frame = spark.createDataFrame(texts, "id long, text string").repartitionByRange(2, "id")
            return lakescore.score(frame, config).collect()

        found: dict[str, Any] = {}
        for name, texts in {"clean": rows, "poisoned": poisoned}.items():
            found[name] = {
                row.id: row.asDict(recursive=True) | {"text": None} for row in scored(texts)
            }
        frame = spark.createDataFrame(poisoned[31:35], "id long, text string").coalesce(1)
        entities = lakescore.entities(entity_model)
        column = frame.select("id", entities("text").alias("entities")).collect()
        found["column"] = {row.id: row.asDict(recursive=True)["entities"] for row in column}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
