"""Names of tables, conflicts between writers, versions that were read: what needs no Spark."""

import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lakescore.errors import BusyError, SetupError, TableError
from lakescore.locks import locked
from lakescore.tables import folders, folders_in, is_folder, remove, writers
from lakescore.tables.commits import check_settings, note_of, retried, write_error
from lakescore.tables.folders import on_this_machine
from lakescore.tables.names import Details, beside, identifier, is_path, literal, place
from lakescore.tables.position import check_writer
from lakescore.tables.source import Source, read_error, unreadable
from lakescore.tables.stream import VersionsRead
from lakescore.tables.target import warn_of_statistics
from lakescore.tables.writers import Writer, others, recorded


@pytest.mark.parametrize(
    ("table", "sql"),
    [
        ("scored", "`scored`"),
        ("main.reviews.scored", "`main`.`reviews`.`scored`"),
        ("main.`a.b`.`it``s`", "`main`.`a.b`.`it``s`"),
        ("main.x; DROP TABLE y", "`main`.`x; DROP TABLE y`"),
        ("/a/b`c", "delta.`/a/b``c`"),
        ("s3://a/b/", "delta.`s3://a/b`"),
        ("dbfs:/a/b", "delta.`dbfs:/a/b`"),
        ("main.`a/b`", "`main`.`a/b`"),
    ],
)
def test_every_part_of_a_name_is_quoted(table: str, sql: str) -> None:
    assert identifier(table) == sql


@pytest.mark.parametrize(
    ("value", "sql"),
    [
        (-7, "-7"),
        (date(2026, 3, 4), "DATE'2026-03-04'"),
        ("plain", "'plain'"),
        ("it's; DROP TABLE y", r"'it\'s; DROP TABLE y'"),
        ("back\\'slash", r"'back\\\'slash'"),
        ("${spark.app.name}", r"'\u0024{spark.app.name}'"),  # else it ends as a variable's value
    ],
)
def test_a_value_in_sql_ends_where_it_ends(value: object, sql: str) -> None:
    assert literal(value) == sql


def test_sql_is_given_a_path_that_is_absolute() -> None:
    assert identifier("a/b") == f"delta.`{os.path.abspath('a/b')}`"


@pytest.mark.parametrize("table", ["", "a..b", "a.b.c.d", "a.`b", ".a", "`a`b"])
def test_what_is_no_name_is_refused(table: str) -> None:
    with pytest.raises(TableError, match=r"is not the name of a table; write catalog.schema"):
        identifier(table)


def test_tables_that_belong_to_another_stand_beside_it() -> None:
    assert beside("out/scored/", "_runs") == "out/scored_runs"
    assert beside("main.`a b`.scored", "_runs") == "`main`.`a b`.`scored_runs`"
    assert (is_path("main.`a/b`"), is_path("./a")) == (False, True)
    assert place("a/../b/") == os.path.abspath("b")
    assert place("s3://bucket/a/") == "s3://bucket/a"
    assert place("main.scored") == place("`main`.`scored`")


def test_a_lock_goes_with_its_holder_and_is_waited_for_or_not(tmp_path: Path) -> None:
    folder = str(tmp_path / "new/folder")
    with locked(folder, wait=False), pytest.raises(BlockingIOError), locked(folder, wait=False):
        pass
    with locked(folder, wait=True):
        pass
    assert os.listdir(folder) == []


def writer_that_fails(errors: list[str]) -> Any:
    def write() -> None:
        if errors:
            raise RuntimeError(errors.pop(0))

    return write


def test_a_conflict_is_tried_again_after_pauses_that_grow_to_a_bound() -> None:
    pauses: list[float] = []
    errors = ["[DELTA_CONCURRENT_APPEND] x", *["[DELTA_METADATA_CHANGED] y"] * 9]
    retried("t", writer_that_fails(errors), sleep=pauses.append, draw=lambda low, high: high)
    assert errors == []
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8, 8, 8, 8]


def test_a_writer_that_is_never_fast_enough_says_so() -> None:
    errors = ["DELTA_CONCURRENT_DELETE_READ"] * 100
    with pytest.raises(TableError, match="t: other writers were faster in 40 attempts; run the"):
        retried("t", writer_that_fails(errors), sleep=lambda seconds: None)
    assert len(errors) == 60


def test_the_same_transaction_twice_at_once_is_another_run() -> None:
    with pytest.raises(BusyError, match="another run of this job wrote the same micro-batch"):
        retried("t", writer_that_fails(["DELTA_CONCURRENT_TRANSACTION"]))
    with pytest.raises(RuntimeError, match="something else"):
        retried("t", writer_that_fails(["something else"]))


class ServerlessConf:
    """A stand-in for the settings of serverless compute, which takes a few of them only."""

    def get(self, name: str, default: Any) -> Any:
        raise RuntimeError(f"[CONFIG_NOT_AVAILABLE] Configuration {name} is not available.")


class ServerlessSession:
    """A stand-in for its session."""

    conf = ServerlessConf()


def test_a_session_that_cannot_number_commits_is_refused_in_one_line() -> None:
    spark: Any = ServerlessSession()
    with pytest.raises(SetupError, match="takes no setting spark"):
        check_settings(spark)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("java.io.IOException: No space left on device", "the disk is full; free some room"),
        ("CHECK constraint x violated by row with values: Maria", "a constraint of it refuses a"),
        ("[DELTA_INVALID_CHARACTERS_IN_COLUMN_NAMES]", "leave it out by source.columns"),
        ("java.io.IOException: Mkdirs failed to create", "cannot be written"),
        (
            "[DELTA_MISSING_NOT_NULL_COLUMN_VALUE] Column tenant, which has a NOT NULL constraint",
            "its column tenant is NOT NULL, and the job has none of that name",
        ),
    ],
)
def test_what_cannot_be_written_is_said_without_a_row(said: str, expected: str) -> None:
    error = write_error("out/t", RuntimeError(said))
    assert error is not None
    assert str(error).startswith("out/t: ") and expected in str(error) and "Maria" not in str(error)
    assert write_error("out/t", RuntimeError("else")) is None


def test_a_file_of_the_source_that_may_not_be_read_is_none_of_the_checkpoints() -> None:
    source = Source("in/t", "id", 0, "file:/in/t")
    error = unreadable(RuntimeError("/in/t/part-0.parquet (Permission denied)"), source)
    assert str(error).startswith("in/t: a file of it cannot be read (RuntimeError: ")
    said = 'Permission denied: user=me, access=READ, inode="/in/t/part-0.parquet":you:group:-rw'
    for host in ("nn:8020", "ns"):
        assert unreadable(RuntimeError(said), replace(source, location=f"hdfs://{host}/in/t"))
    assert unreadable(RuntimeError("/checkpoint/offsets/0 (Permission denied)"), source) is None
    assert unreadable(RuntimeError("/in/t/part-0.parquet"), source) is None


@pytest.mark.parametrize(
    ("properties", "keeps_texts"),
    [
        ({}, True),
        ({"delta.dataSkippingNumIndexedCols": "-1"}, True),
        ({"delta.dataSkippingNumIndexedCols": "1"}, False),
        ({"delta.dataSkippingStatsColumns": "id, `text`"}, True),
        ({"delta.dataSkippingStatsColumns": "`id`"}, False),
    ],
)
def test_a_target_whose_log_keeps_texts_is_told(
    properties: dict[str, str], keeps_texts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_statistics("main.t", ["id", "text"], properties, text="text")
    assert ("main.t: Delta keeps the beginning of texts in its log" in caplog.text) == keeps_texts


@pytest.mark.parametrize(
    ("said", "kind", "expected"),
    [
        ("[DELTA_SOURCE_TABLE_IGNORE_CHANGES] Maria", TableError, "source.changes is append"),
        ("[DELTA_MISSING_CHANGE_DATA]", TableError, "change data feed was off for a while"),
        ("[DELTA_SCHEMA_CHANGED_WITH_VERSION]", TableError, "given another type since"),
        ("[DELTA_VERSION_NOT_FOUND]", TableError, "are gone, by VACUUM or by the clean-up"),
        ("[DELTA_MISSING_FILES_UNEXPECTED_VERSION]", TableError, "are gone, by VACUUM or by the"),
        (
            "[DIFFERENT_DELTA_TABLE_READ_BY_STREAMING_SOURCE]",
            TableError,
            "give each its own target.checkpoint",
        ),
        ("[CONCURRENT_STREAM_LOG_UPDATE]", BusyError, "another run of this job reads src"),
    ],
)
def test_why_a_source_cannot_be_read_on_is_said_with_what_to_do(
    said: str, kind: type[Exception], expected: str
) -> None:
    error = read_error(said, Source("src", "1", 0), "/out/t", "")
    assert type(error) is kind
    assert expected in str(error) and "Maria" not in str(error)
    assert read_error("something else", Source("src", "1", 0), "/out/t", "") is None


@pytest.mark.parametrize(
    ("file", "at", "expected"),
    [
        ("file:///out/t/part-0", "file:/out/src", "main.t: files of it went while it was read"),
        ("file:/my%20out/src/part-0", "file:/my out/src", "src: files that the last run had not"),
        ("s3a://out/src/part-0", "s3://out/src", "src: files that the last run had not read"),
        ("hdfs://nn:8020/out/src/part-0", "hdfs://nn:8020/out/src", "src: files that the last run"),
        ("/out/src/part-0", "hdfs://ns/out/src", "src: files that the last run had not read"),
        (
            "abfss:REDACTED_LOCAL_PART@a.dfs.core.windows.net/src/part-0",
            "abfss://out@a.dfs.core.windows.net/src",
            "src: files that the last run had not read",
        ),
        ("/tmp/blockmgr-1/shuffle_0.data (Too many open files)", "file:/src", None),
        ("file:/out/src2/part-0", "file:/out/src", None),
        ("file:/data/out/src/part-0", "file:/out/src", None),
        ("file:/my out/t/part-0", "file:/my out/t", "src: files that the last run had not read"),
    ],
)
def test_a_file_that_is_gone_is_laid_at_the_door_of_its_own_table(
    file: str, at: str, expected: str | None
) -> None:
    said = f"java.io.FileNotFoundException: {file}"
    error = read_error(said, Source("src", "1", 0, at), "main.t", "file:/out/t")
    assert error is None if expected is None else str(error).startswith(expected)


def offset(version: int, index: int = -1) -> str:
    return str({"reservoirVersion": version, "index": index, "isStartingVersion": False})


def test_versions_read_are_those_of_all_micro_batches() -> None:
    first = {"sources": [{"startOffset": "None", "endOffset": offset(3)}]}
    assert VersionsRead().after(first, None) == VersionsRead(2, 2)
    # After a snapshot at version 1 a stream begins with version 2.
    assert VersionsRead().after(first, 2) == VersionsRead(2, 2)
    later = {"sources": [{"startOffset": "None", "endOffset": offset(6)}]}
    assert VersionsRead().after(later, 2) == VersionsRead(2, 5)
    part = {"sources": [{"startOffset": offset(3), "endOffset": offset(4, 1)}]}
    rest = {"sources": [{"startOffset": offset(4, 1), "endOffset": offset(6)}]}
    assert VersionsRead().after(part, None).after(rest, None) == VersionsRead(3, 5)
    nothing = {"sources": [{"startOffset": "None", "endOffset": "None"}]}
    assert VersionsRead(1, 2).after(nothing, None) == VersionsRead(1, 2)


def test_a_source_is_known_by_its_id_or_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    spark: Any = None

    def describe(spark: Any, table: str) -> Details:
        """Stand in for tables: this name alone leads to one."""
        if table != "out/link":
            raise TableError("it is not there")
        return Details("5", "", {}, 0, 0)

    monkeypatch.setattr(writers, "describe", describe)
    first = Writer(source="out/a", id="1", key=("id",), text="text", query="q")
    second = Writer(source="main.b", id="2", key=("id",), text="text", version=7)
    anew = Writer(source="out/a", id="3", key=("id",), text="text", version=1)
    assert recorded(spark, [first, second], Source("out/moved", "1", 0)) == first
    assert recorded(spark, [first, second], Source("`main`.b", "3", 0)) == second
    assert recorded(spark, [first, second], Source("main.c", "3", 0)) is None
    assert recorded(spark, [first, anew], Source("out/a", "3", 0)) == anew
    linked = replace(
        first, source="out/link", id="4"
    )  # which was made anew, and is named otherwise
    assert recorded(spark, [second, linked], Source("out/made", "5", 0)) == linked
    moved = [first, replace(second, id="3")]  # the two have changed names
    assert recorded(spark, moved, Source("out/a", "3", 0)) == moved[1]
    assert others(spark, moved, Source("out/a", "3", 0)) == [first]
    known = [first, second, anew, linked]
    assert others(spark, known, Source("out/a", "3", 0)) == [second, linked]
    assert others(spark, known, Source("out/made", "5", 0)) == [first, second, anew]
    with pytest.raises(TableError, match=r"by source.key \(id\), which is now \(id, day\)"):
        check_writer(first, replace(first, key=("id", "day")), "t")
    with pytest.raises(TableError, match=r"by source.text \(text\), which is now \(body\)"):
        check_writer(first, replace(first, text="body"), "t")


@pytest.mark.parametrize("metadata", [None, "", "words", "{not json", "[1]", "7", "{}"])
def test_what_other_writers_note_is_no_note(metadata: str | None) -> None:
    assert note_of(metadata) == {}


def test_a_relative_path_is_refused_on_databricks(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the bundle makes one of a slash in a target's name: catalog.schema. stands before it.
    table = "main.lakescore.reviews/scored"
    assert identifier(table) == f"delta.`{os.path.abspath(table)}`"
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18.0")
    with pytest.raises(
        TableError, match=rf"^{table}: is a relative path; .* its name in the catalog"
    ):
        identifier(table)
    assert identifier("/Volumes/a/b") == "delta.`/Volumes/a/b`"
    assert identifier("s3://bucket/a") == "delta.`s3://bucket/a`"


def test_folders_of_a_volume_are_seen_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A stand-in for a workspace, whose Volumes no call of Hadoop's file systems may touch: it has
    # no JVM at all.
    monkeypatch.setattr(folders, "VOLUMES", f"{tmp_path}/")
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18.0")
    spark: Any = SimpleNamespace()
    (tmp_path / "volume/stage/part").mkdir(parents=True)
    (tmp_path / "volume/file").write_text("text")
    folder = f"dbfs:{tmp_path}/volume"
    assert is_folder(spark, folder)
    assert folders_in(spark, folder) == [f"{folder}/stage"]
    assert on_this_machine(spark, folder) is None  # no lock of this machine's holds it
    remove(spark, f"{folder}/stage")
    assert folders_in(spark, folder) == []
    remove(spark, f"{folder}/stage")
    remove(spark, f"{folder}/file")  # as a folder that another run keeps writing to
    assert "volume/file: could not be removed" in caplog.text
