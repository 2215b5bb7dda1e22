"""The texts that every benchmark reads, and the table and line of JSON that each prints."""

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lib")]

# Open texts of mixed lengths, where they are at hand; the demo's messages otherwise.
BENCH_TEXTS = ROOT.parent / "shared/data/bench_texts/all.parquet"
ENTITIES, SENTIMENT = str(ROOT / "models/entities"), str(ROOT / "models/sentiment")


def load_texts(rows: int) -> tuple[str, list[str]]:
    """Return (name of the corpus, its first `rows` texts), leaving out nulls and blanks."""
    if BENCH_TEXTS.exists():
        import pandas as pd

        return "bench_texts", pd.read_parquet(BENCH_TEXTS).text.head(rows).tolist()  # has no nulls
    from demo.messages import messages

    written = (each.text for each in messages(2 * rows, seed=7))
    return "demo messages", list(islice((text for text in written if text and text.strip()), rows))


def cut_to_tokens(texts: Sequence[str], folder: str, limit: int) -> list[str]:
    """Cut each text after its first `limit` tokens, so that others' truncation changes nothing."""
    from lakescore.encoder import load_tokenizer

    tokens = load_tokenizer(Path(folder)).tokenize(list(texts))
    cut = []
    for text, begin, end in zip(texts, tokens.bounds, tokens.bounds[1:], strict=False):
        cut.append(text if end - begin <= limit else text[: tokens.ends[begin + limit - 1]])
    return cut


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[nth]) for row in cells) for nth in range(len(header))]
    print(f"\n{title}")
    for nth_row, row in enumerate(cells):
        values = [rows[nth_row - 1][nth] if nth_row else header[nth] for nth in range(len(row))]
        print(
            "  "
            + "  ".join(
                text.ljust(width) if isinstance(value, str) else text.rjust(width)
                for text, width, value in zip(row, widths, values, strict=True)
            ).rstrip()
        )


def print_json(figures: dict[str, Any]) -> None:
    """Print the figures as the one last line of JSON."""
    print()
    print(json.dumps(figures))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
