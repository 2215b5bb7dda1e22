"""What a job is: strict, frozen settings, read from YAML and `--set key=value`."""

import difflib
import errno
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from lakescore.errors import ConfigError


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, for which a key that is there twice is an error, as YAML has it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read one mapping as it is written: what a merge (<<) brings may be set again."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise ConfigError(f"line {line}: key {name!r} is there twice; keep one of them")
            seen.add(name)
        return node


class Strict(BaseModel):
    """A group of settings: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), defaults: Sequence[str] = ()
    ) -> Self:
        """Read a YAML file, apply `key.path=value` overrides, and check every key and value.

        `defaults` are of the same form: values of keys that the groups which are there leave out.

        Raises:
            ConfigError: the file cannot be read, a key is unknown or a value does not fit.
        """
        path = Path(path)
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"{path}: {reason}; name a YAML file that can be read") from error
        except ConfigError as error:
            raise ConfigError(f"{path}, {error}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date may be none, too
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ConfigError(f"{path}{where}: not valid YAML; see conf/ for examples") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: holds no keys; see conf/ for examples")
        for override in overrides:
            _apply(values, override, cls, option="--set")
        for default in defaults:
            _apply(values, default, cls, option="--default")
        return cls.parse(values, origin=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "config") -> Self:
        """Check `values` as settings; `origin` names them in errors.

        Raises:
            ConfigError: one line for each key or value that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [f"{origin}: {_explain(problem, cls)}" for problem in error.errors()]
            raise ConfigError("\n".join(problems)) from None


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(dict.fromkeys(value))  # a name that is said twice is one
    return tuple(value) if isinstance(value, list) else value


def _not_blank(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError(f"is {value!r}; name something")
    return value


TaskName = Literal["entities", "sentiment"]
Aggregation = Literal["simple", "first", "average", "max"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Changes = Literal["append", "cdf", "snapshot"]
Write = Literal["append", "merge", "overwrite"]
# What each kind of source may be written by; the first is the default.
WRITES: dict[Changes, tuple[Write, ...]] = {
    "append": ("append",),
    "cdf": ("merge",),
    "snapshot": ("merge", "overwrite"),
}
Name = Annotated[str, AfterValidator(_not_blank)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)]


class SourceConfig(Strict):
    """The table to read. A table is a name (`catalog.schema.table`), or a path with a slash."""

    table: Name | None = None
    """The Delta table to score; needed by the job, not by `lakescore.score(df, config)`."""
    key: Names = ()
    """The column or columns that identify a row; needed by the job."""
    text: Name = "text"
    """The column to score."""
    columns: Names | None = None
    """The columns to carry into the target besides the key; all of them if not given."""
    changes: Changes = "append"
    """How the source changes: `append`, rows are only added; `cdf`, the target follows its change
    data feed; `snapshot`, the whole of its latest version is compared with the target."""
    max_bytes: Annotated[int, Field(ge=1, lt=2**63)] = 64 * 2**20
    """About how many bytes of source files one micro-batch reads; a file is never divided."""
    max_files: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """How many source files one micro-batch reads at most; as many as `max_bytes` lets, if not
    given. A snapshot is divided by `max_bytes` alone."""
    partitions: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Tasks that a micro-batch is divided into; by default four for each that can run at once."""


class TargetConfig(Strict):
    """The table to write."""

    table: Name | None = None
    """The Delta table to write, made if it is not there; needed by the job."""
    checkpoint: Name | None = None
    """Where Spark remembers what was read. By default beside a target that is named by path;
    a target named by catalog needs one, on a Volume for instance."""
    write: Write | None = None
    """How rows get there: `append` for a source that only grows, `merge` by the key for one that
    changes, `overwrite` to replace the whole by a snapshot, at once. By `source.changes`, if not
    given."""
    evolve: bool = False
    """Whether columns that are new in the source, or tasks that are new in the job, become
    columns of a target that is there already; without it they are an error."""


class EntitiesConfig(Strict):
    """Named entities by a token-classification model."""

    model: Name
    """A folder, `org/name@revision` on the Hub, `models:/name@alias` or `runs:/id/path`."""
    aggregation: Aggregation = "first"
    """How the tokens of a word agree, as in transformers' pipeline; `simple` takes each token
    for itself and may split words."""


class SentimentConfig(Strict):
    """Sentiment, or any other label of a whole text, by a sequence-classification model."""

    model: Name
    """A folder, `org/name@revision` on the Hub, `models:/name@alias` or `runs:/id/path`."""


class TasksConfig(Strict):
    """What to find in each text; at least one."""

    entities: EntitiesConfig | None = None
    sentiment: SentimentConfig | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "TasksConfig":
        if self.entities is None and self.sentiment is None:
            raise ValueError("names no task; give entities, sentiment or both")
        return self


class EncodingConfig(Strict):
    """How texts go through the models."""

    dtype: Dtype = "float32"
    """float32 equals transformers' pipeline; auto takes bfloat16 where the hardware has it,
    and float16 on other GPUs."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one forward pass, padding included; 1024 on a CPU and 65536 on a GPU by default."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens in one window, special ones included; the model's own limit by default."""
    stride: Annotated[int, Field(ge=0)] = 64
    """Tokens that two windows of a long text share; at most half a window."""
    long_text: Literal["window", "reject"] = "window"
    """What happens to a text over `max_length`: windows over all of it, or the error too_long."""


class LimitsConfig(Strict):
    """What may go wrong before a run stops."""

    max_error_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """The share of a run's rows that may have an error; any, if not given. A micro-batch that
    goes over it is not committed, and the run stops."""


class MlflowConfig(Strict):
    """Where runs are recorded and models found."""

    tracking_uri: Name | None = None
    """MLflow's store. If not given, the workspace on Databricks; elsewhere `MLFLOW_TRACKING_URI`,
    or else from the command line `sqlite:///mlflow.db` in the folder at hand, from Python MLflow's
    own setting."""
    registry_uri: Name | None = None
    """The model registry; MLflow's own setting if not given."""
    experiment: Name | None = None
    """The experiment's name; MLflow's own setting if not given."""


class JobConfig(Strict):
    """One job: a source, a target, the tasks between them."""

    source: SourceConfig = SourceConfig()
    target: TargetConfig = TargetConfig()
    tasks: TasksConfig
    encoding: EncodingConfig = EncodingConfig()
    limits: LimitsConfig = LimitsConfig()
    mlflow: MlflowConfig = MlflowConfig()
    report: Name | None = None
    """Where the job writes its HTML report; none if not given."""

    @model_validator(mode="after")
    def _write_fits(self) -> "JobConfig":
        changes, write = self.source.changes, self.target.write
        if write is not None and write not in WRITES[changes]:
            fitting = " or ".join(WRITES[changes])
            raise ValueError(
                f"'target.write' is {write}, and a source of source.changes {changes} is written "
                f"by {fitting}; change one of the two, or leave out target.write"
            )
        return self

    @property
    def write(self) -> Write:
        """How rows get into the target."""
        return self.target.write or WRITES[self.source.changes][0]


def check_output(file: Path) -> None:
    """Make a file's folder, and see that it can be written, before the work that would fill it.

    Raises:
        ConfigError: it cannot.
    """
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def output_errors(file: Path) -> Iterator[None]:
    """Name the file in what is raised when it cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:  # a name that holds a NUL is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{file}: {reason}; name a file that can be written") from error


def _apply(values: dict[str, Any], given: str, model: type[Strict], *, option: str) -> None:
    name, equals, text = given.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"{option} {given!r}: not of the form key=value; as in target.table=out")
    value: object = text
    # A name is taken as it is: in YAML a backtick is no beginning and " #" is an end.
    if text in ("", "null") or text[0] in "'\"" or not _is_text(model, name.split(".")):
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{option} {name}: {text!r} is not a YAML value; quote it") from error
    *parents, last = name.split(".")
    for depth, parent in enumerate(parents):
        if option == "--default" and values.get(parent) is None:
            return  # a task that the configuration has not, for instance
        below = values.setdefault(parent, {})
        if below is None:
            below = values[parent] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"{option} {name}: {'.'.join(parents[: depth + 1])!r} is the value {below!r}, "
                "not a group of keys; set the whole of it"
            )
        values = below
    if option == "--set" or last not in values:
        values[last] = value


def _explain(problem: Any, model: type[Strict]) -> str:
    """One line for one of pydantic's findings: the key, its value, what is possible."""
    where = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        known = list(_group(model, where[:-1]).model_fields)
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"unknown key {key!r}; known: {', '.join(known)}{hint}"
    if problem["type"] == "invalid_key":
        return f"the key {problem['input']!r} is not text; put it in quotes, or take it out"
    if problem["type"] == "missing":
        return f"{key!r} is missing; give it a value"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key!r} {reason}" if key else reason
    if problem["type"] in ("model_type", "model_attributes_type"):
        known = list(_group(model, where).model_fields)
        return f"{key!r} is {problem['input']!r}, not a group of keys; known: {', '.join(known)}"
    return f"{key!r} is {problem['input']!r}: {reason[:1].lower()}{reason[1:]}"


def _is_text(model: type[Strict], where: Sequence[str]) -> bool:
    """Tell whether the setting that a key path leads to is a text and nothing else."""
    try:
        annotation: Any = _group(model, where[:-1]).model_fields[where[-1]].annotation
    except (AttributeError, KeyError):  # there is no such setting
        return False
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    kinds = {part for part in parts or (annotation,) if part is not type(None)}
    return {get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds} == {str}


def _group(model: type[Strict], where: Sequence[str]) -> type[Strict]:
    """The settings class that the key path `where` leads to."""
    for name in where:
        annotation: Any = model.model_fields[name].annotation
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        model = annotation
    return model
