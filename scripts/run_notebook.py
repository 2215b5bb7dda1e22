r"""Run a Databricks source notebook from top to bottom on this machine, into one HTML page.

    python scripts/run_notebook.py notebooks/01_explore.py --widget table=demo/data/messages \
      --widget entities=models/entities --widget sentiment=models/sentiment

What a notebook finds on Databricks stands in here: `spark` (a local session), `display` (Spark and
pandas frames, matplotlib figures), `displayHTML`, and of `dbutils` the widgets, whose values are
those of `--widget` or else their defaults. Cells of `%md` are shown as they are written; `%pip` is
left out, since the environment is there already; other magic commands are an error. The page has
each cell with what it printed and displayed; a cell that raises ends the run, and the page.
"""

import argparse
import base64
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

HEADER = "# Databricks notebook source"
BORDER = "# COMMAND ----------"
MAGIC = "# MAGIC"
ROWS_SHOWN = 100


@dataclass
class Cell:
    """A part of a notebook: its code or words, the line that it begins at, what it gave."""

    source: str
    line: int
    is_text: bool = False
    outputs: list[str] = field(default_factory=list)


def cells(notebook: str, name: str) -> Iterator[Cell]:
    """Yield the cells of a notebook's source.

    Raises:
        SystemExit: it is no notebook, or has a magic command that only Databricks knows.
    """
    lines = notebook.splitlines()
    if not lines or lines[0] != HEADER:
        raise SystemExit(
            f"{name}: does not begin with {HEADER!r}, as Databricks exports a notebook"
        )
    begin = 1
    for end in [*(nth for nth, line in enumerate(lines) if line == BORDER), len(lines)]:
        part = lines[begin:end]
        written = [line for line in part if line.strip()]
        if written and all(line.startswith(MAGIC) for line in written):
            first, *rest = (line.removeprefix(MAGIC).removeprefix(" ") for line in written)
            command, _, words = first.partition(" ")
            if command == "%md":
                yield Cell("\n".join([words, *rest]).strip(), begin + 1, is_text=True)
            elif command != "%pip":
                raise SystemExit(
                    f"{name}, line {begin + 1}: {command} is known on Databricks alone"
                )
        elif written:
            yield Cell("\n".join(part), begin + 1)
        begin = end + 1


class Widgets:
    """`dbutils.widgets` of free text: a value that was given, or the default."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = dict(given)
        self._values: dict[str, str] = {}

    def text(self, name: str, default: str, label: str = "") -> None:
        """Declare a widget of free text."""
        self._values[name] = self._given.get(name, default)

    def get(self, name: str) -> str:
        """Return a widget's value."""
        return self._values[name]


def run(notebook: Path, spark: "SparkSession", widgets: Mapping[str, str]) -> tuple[str, bool]:
    """Run a notebook, and return its page and whether all of it ran.

    Raises:
        SystemExit: it is no notebook, or has a magic command that only Databricks knows.
    """
    import matplotlib.pyplot as plt

    done: list[Cell] = []
    namespace: dict[str, Any] = {
        "__name__": "__main__",
        "spark": spark,
        "dbutils": SimpleNamespace(widgets=Widgets(widgets)),
        "display": lambda shown=None, *_: done[-1].outputs.append(_html(shown)),
        "displayHTML": lambda html: done[-1].outputs.append(str(html)),
    }
    whole = True
    for cell in cells(notebook.read_text("utf-8"), str(notebook)):
        done.append(cell)
        if cell.is_text:
            continue
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                # With its lines where they stand in the file, for tracebacks.
                code = compile("\n" * (cell.line - 1) + cell.source, str(notebook), "exec")
                exec(code, namespace)
        except Exception:  # of any kind: it is shown, and ends the run
            printed.write(traceback.format_exc())
            whole = False
        if printed.getvalue():
            cell.outputs.insert(0, f"<pre>{escape(printed.getvalue())}</pre>")
        cell.outputs += [_html(plt.figure(number)) for number in plt.get_fignums()]
        plt.close("all")
        if not whole:
            print(printed.getvalue(), file=sys.stderr)
            break
    return _page(notebook.stem, done), whole


def _html(shown: Any) -> str:
    if hasattr(shown, "savefig"):
        import matplotlib.pyplot as plt

        picture = io.BytesIO()
        shown.savefig(picture, format="png", dpi=110, bbox_inches="tight")
        plt.close(shown)
        return f'<img src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">'
    if hasattr(shown, "toPandas"):
        shown = shown.limit(ROWS_SHOWN).toPandas()
    if hasattr(shown, "to_html"):
        return str(shown.to_html(index=False, max_rows=ROWS_SHOWN, border=0))
    return f"<pre>{escape(str(shown))}</pre>"


def _page(title: str, done: list[Cell]) -> str:
    parts = []
    for cell in done:
        if cell.is_text:
            parts.append(f'<pre class="text">{escape(cell.source)}</pre>')
        else:
            code = f"<details><summary>code</summary><pre>{escape(cell.source)}</pre></details>"
            parts.append(code + "".join(f"<div>{each}</div>" for each in cell.outputs))
    style = (
        "body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;"
        " padding: 0 1rem }"
        "pre { white-space: pre-wrap } .text { font-family: inherit; font-size: 1.05em }"
        "table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: left;"
        " vertical-align: top } summary { color: #55606e } img { max-width: 100% }"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{style}</style><body>{''.join(parts)}</body></html>\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the notebook that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--widget", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, help="the page; reports/NOTEBOOK.html if not given")
    given = parser.parse_args(arguments)
    if wrong := [each for each in given.widget if "=" not in each]:
        parser.error(f"--widget {wrong[0]}: not of the form NAME=VALUE")
    from lakescore.session import local_session

    os.environ.setdefault("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with local_session("notebook") as spark:
        page, whole = run(given.notebook, spark, dict(each.split("=", 1) for each in given.widget))
    output = given.output or Path("reports") / f"{given.notebook.stem}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, "utf-8")
    print(output)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
