"""Pictures and one HTML page about a scored table.

`summarise` counts, by Spark; `plots` draws what was counted; `render` makes the page. Figures hold
no word of any text, so that they can go to MLflow; the page does, if it is `with_texts`.
`highlighted` marks the entities of one text, for a notebook.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lakescore import tables, tracking
from lakescore.config import output_errors
from lakescore.report.counting import summarise
from lakescore.report.highlight import highlighted
from lakescore.report.page import render
from lakescore.report.plots import plots
from lakescore.report.summary import Summary

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Summary", "highlighted", "plots", "render", "summarise", "write_report"]


def write_report(
    spark: "SparkSession",
    table: str,
    output: Path,
    *,
    text_column: str = "text",
    key: Sequence[str] = (),
    log_to: tracking.Run | None = None,
) -> Path:
    """Write the page about a scored table, texts and all, to a file, and return its path.

    Args:
        spark: the session to use.
        table: the target of a score job, by name or path.
        output: the HTML file; its folder is made where it is missing.
        text_column: the column of the texts; without it the page shows none.
        key: the columns that name a row; the table's first column if not given.
        log_to: an MLflow run that gets the plots as pictures, and the page without any text.

    Raises:
        TableError: the table is missing, or is not one that was scored.
        ConfigError: the file cannot be written.
    """
    summary = summarise(tables.load(spark, table), text_column=text_column, key=key)
    run = tracking.run_figures(summary.run_id) if summary.run_id else None
    figures = plots(summary)
    page = render(summary, figures, run, table=table)
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, "utf-8", newline="\n")
    if log_to is not None:
        for name, figure in figures.items():
            log_to.log_figure(figure, f"plots/{name}.png")
        log_to.log_text(render(summary, figures, run, table=table, with_texts=False), "report.html")
    return output
