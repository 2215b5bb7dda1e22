from pathlib import Path

import pytest

from lakescore import ConfigError, JobConfig
from lakescore.config import check_output

ENTITIES = {"tasks": {"entities": {"model": "models/entities"}}}


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_with_overrides_becomes_settings(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {entities: {model: m}}\nsource: {table: a/b, key: id}\n")
    job = JobConfig.load(path, ["source.key=[tenant, id]", "target.table=x/y", "encoding.stride=8"])
    assert job.source.key == ("tenant", "id")
    assert (job.source.table, job.target.table, job.encoding.stride) == ("a/b", "x/y", 8)
    assert job.tasks.entities is not None
    assert job.tasks.entities.aggregation == "first"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"tasks": {"entites": {}}},
            "unknown key 'tasks.entites'; known: entities, sentiment (did you mean entities?)",
        ),
        ({}, "'tasks' is missing; give it a value"),
        ({"tasks": {}}, "'tasks' names no task; give entities, sentiment or both"),
        ({"tasks": 3}, "'tasks' is 3, not a group of keys; known: entities, sentiment"),
        (
            {"tasks": {"entities": {"model": "m", "aggregation": "frist"}}},
            "'tasks.entities.aggregation' is 'frist': input should be 'simple', 'first', "
            "'average' or 'max'",
        ),
        (
            ENTITIES | {"encoding": {"token_budget": "9"}},
            "'encoding.token_budget' is '9': input should be a valid integer",
        ),
        (
            ENTITIES | {"encoding": {"max_length": 2}},
            "'encoding.max_length' is 2: input should be greater than or equal to 8",
        ),
        (
            ENTITIES | {"encoding": {"dtype": "float8"}},
            "'encoding.dtype' is 'float8': input should be 'float32', 'bfloat16', 'float16' or "
            "'auto'",
        ),
        (
            ENTITIES | {"source": {"max_bytes": 2**63}},
            "'source.max_bytes' is 9223372036854775808: input should be less than "
            "9223372036854775808",
        ),
        (
            ENTITIES | {True: "x"},
            "the key True is not text; put it in quotes, or take it out",
        ),
        (ENTITIES | {"source": {"key": [1]}}, "'source.key' is 1: input should be a valid string"),
        (
            ENTITIES | {"source": {"changes": "append"}, "target": {"write": "merge"}},
            "'target.write' is merge, and a source of source.changes append is written by append; "
            "change one of the two, or leave out target.write",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        JobConfig.parse(values, origin="conf/job.yml")
    assert str(raised.value) == f"conf/job.yml: {message}"


def test_each_wrong_setting_has_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError) as raised:
        JobConfig.parse(ENTITIES | {"encoding": {"stride": -1, "batch": 2}})
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [\n- }", "job.yml, line 2: not valid YAML; see conf/ for examples"),
        (
            "tasks: {}\nsource: {key: a,\n key: b}\n",
            "job.yml, line 3: key 'key' is there twice; keep one of them",
        ),
        ("due: 2026-13-45\n", "job.yml: not valid YAML; see conf/ for examples"),
        ("[" * 5000, "job.yml: not valid YAML; see conf/ for examples"),
        ("- 1\n", "job.yml: holds no keys; see conf/ for examples"),
        ("", "job.yml: holds no keys; see conf/ for examples"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        JobConfig.load(write(tmp_path, text))
    assert str(raised.value).endswith(message)


def test_a_key_that_a_merge_brought_may_be_set_again(tmp_path: Path) -> None:
    text = "tasks: {entities: &one {model: a}, sentiment: {<<: *one, model: b}}\n"
    job = JobConfig.load(write(tmp_path, text))
    assert job.tasks.sentiment is not None
    assert job.tasks.sentiment.model == "b"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yml: No such file or directory; name a YAML file"):
        JobConfig.load(tmp_path / "none.yml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target.table", "--set 'target.table': not of the form key=value; as in target.table=out"),
        ("tasks.=1", "--set 'tasks.=1': not of the form key=value; as in target.table=out"),
        (
            "report.path=x",
            "--set report.path: 'report' is the value 'r.html', not a group of keys; "
            "set the whole of it",
        ),
        ("limits=[", "--set limits: '[' is not a YAML value; quote it"),
    ],
)
def test_an_override_that_fits_nothing_is_named(
    tmp_path: Path, override: str, message: str
) -> None:
    path = write(tmp_path, "tasks: {entities: {model: m}}\nreport: r.html\n")
    with pytest.raises(ConfigError) as raised:
        JobConfig.load(path, [override])
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["`main`.`x`.`y.z`", "main.s.t # c", "main.s.a: b", "[a]", "1"])
def test_a_name_that_overrides_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, "tasks: {entities: {model: m}}\n")
    job = JobConfig.load(path, [f"source.table={name}", f"target.table='{name}'", "source.key=a"])
    assert (job.source.table, job.target.table, job.source.key) == (name, name, ("a",))


def test_settings_never_change() -> None:
    job = JobConfig.parse(ENTITIES)
    with pytest.raises(ValueError, match="frozen"):
        job.report = "x"  # type: ignore[misc]


@pytest.mark.parametrize("value", ["", "  ", "a\0b"])
def test_a_name_that_names_nothing_is_refused(value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        JobConfig.parse({"target": {"checkpoint": value}, "tasks": {"sentiment": {"model": "m"}}})
    assert str(raised.value) == f"config: 'target.checkpoint' is {value!r}; name something"


def test_where_a_file_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output(tmp_path / "new/folder/report.html")
    assert (tmp_path / "new/folder").is_dir()
    for wrong in (tmp_path / "file/report.html", tmp_path / "new", tmp_path / "a\0b/report.html"):
        with pytest.raises(ConfigError) as raised:
            check_output(wrong)
        message = str(raised.value)
        assert message.startswith(f"{wrong}: ")
        assert message.endswith("; name a file that can be written")


def test_a_default_is_for_what_a_group_that_is_there_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {entities: {}}\n")
    models = [f"tasks.{task}.model=models:/{task}@champion" for task in ("entities", "sentiment")]
    tasks = JobConfig.load(path, defaults=models).tasks
    assert tasks.entities is not None
    assert (tasks.entities.model, tasks.sentiment) == ("models:/entities@champion", None)

    path = write(tmp_path, "tasks: {entities: {model: mine}, sentiment: null}\n")
    tasks = JobConfig.load(path, ["tasks.entities.aggregation=max"], models).tasks
    assert tasks.entities is not None
    assert (tasks.entities.model, tasks.sentiment) == ("mine", None)
    assert tasks.entities.aggregation == "max"


def test_a_default_that_fits_nothing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {entities: {model: m}}\n")
    with pytest.raises(ConfigError, match="--default 'tasks': not of the form key=value"):
        JobConfig.load(path, defaults=["tasks"])
