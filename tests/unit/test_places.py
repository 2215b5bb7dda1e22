"""Where a job's tables and its checkpoint may be: what needs no Spark."""

import os
from typing import Any

import pytest

from lakescore import JobConfig
from lakescore.errors import ConfigError, TableError
from lakescore.places import checkpoint_of, job_tables
from lakescore.purge import purge_target


def test_a_path_in_the_form_of_a_name_is_refused() -> None:
    for name in ("delta.`/data/scored`", "Delta.`s3://data/scored`"):
        with pytest.raises(TableError, match=r"in the form of a name; write the path: \S*/scored$"):
            checkpoint_of(job(name, "/data/scored/checkpoint"))


@pytest.mark.parametrize(
    ("table", "checkpoint"),
    [
        ("out/scored", "out/scored/"),
        ("out/scored", "out/scored/checkpoint"),
        ("out/scored", "out/scored/_checkpoint"),
        ("s3://bucket/scored", "s3://bucket/scored/checkpoint"),
        ("/Volumes/a/scored", "dbfs:/Volumes/a/scored/checkpoint"),
        ("file:/a/scored", "/a/scored/checkpoint"),
        ("/a/scored", "file:/a//scored/checkpoint"),
        ("s3://bucket/scored", "s3://bucket/x/../scored/checkpoint"),
    ],
)
def test_a_checkpoint_where_vacuum_of_the_target_removes_it_is_refused(
    table: str, checkpoint: str
) -> None:
    with pytest.raises(ConfigError, match=rf"VACUUM removes it .* such as {table}_checkpoint$"):
        checkpoint_of(job(table, checkpoint))


def test_a_checkpoint_is_beside_the_target() -> None:
    assert checkpoint_of(job("out/scored/", None)) == os.path.abspath("out/scored_checkpoint")
    for checkpoint in ("/out/scored_checkpoint", "s3://bucket/out"):
        assert checkpoint_of(job("/out/scored", checkpoint)) == checkpoint
        assert checkpoint_of(job("/", "s3://bucket/out")) == "s3://bucket/out"
    assert checkpoint_of(job("main.scored", "/Volumes/a")) == "/Volumes/a"


@pytest.mark.parametrize("hours", [-1.0, float("nan"), float("inf")])
def test_a_purge_by_what_is_no_number_of_hours_is_refused(hours: float) -> None:
    spark: Any = None  # which is asked for nothing
    with pytest.raises(ConfigError, match=f"^retain_hours is {hours}; give a number of hours"):
        purge_target(spark, job("out/scored", None), retain_hours=hours)


def test_a_checkpoint_with_a_variable_of_sql_is_refused() -> None:
    with pytest.raises(TableError, match=r"^/Volumes/\$\{env\}/a: holds \$\{"):
        checkpoint_of(job("main.scored", "/Volumes/${env}/a"))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"source": {"key": "id"}}, "'source.table' is missing; name the Delta table to score"),
        (
            {"source": {"table": "a/b"}},
            "'source.key' is missing; name the columns that identify a row",
        ),
        ({"target": {}}, "'target.table' is missing; name the Delta table to write"),
        (
            {"target": {"table": "scored"}},
            "'target.checkpoint' is missing; scored is a name in the catalog: give a folder that "
            "lasts, such as /Volumes/catalog/schema/volume/checkpoint",
        ),
    ],
)
def test_a_job_without_its_tables_is_refused(group: dict[str, Any], message: str) -> None:
    settings = job("out/scored", None).model_dump(include={"source", "target", "tasks"})
    with pytest.raises(ConfigError) as raised:
        job_tables(JobConfig.parse(settings | group))
    assert str(raised.value) == message


def job(target: str, checkpoint: str | None) -> JobConfig:
    return JobConfig.parse(
        {
            "source": {"table": "in/messages", "key": "id"},
            "target": {"table": target, "checkpoint": checkpoint},
            "tasks": {"sentiment": {"model": "m"}},
        }
    )
