"""How far a job is: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import tqdm

Progress = Callable[[int, int | None], None]
"""Is told (rows done, rows in all or None) while a job runs, and once more at its end."""


def quiet(done: int, total: int | None) -> None:
    """Say nothing: a `Progress` for whoever does not want to hear."""


# A log gets a line this often; a bar moves at every call.
SECONDS_PER_LINE = 15.0


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a `Progress` that writes to stderr, as a bar or as lines."""
    if not sys.stderr.isatty():
        yield line_progress(time.monotonic)
        return
    with tqdm.tqdm(desc="scored", unit=" rows", unit_scale=True, dynamic_ncols=True) as bar:

        def move(done: int, total: int | None) -> None:
            bar.total = total
            bar.n = done
            bar.refresh()

        yield move


def line_progress(clock: Callable[[], float]) -> Progress:
    """Return a `Progress` that prints a line now and then, and always one at the end."""
    began = said = clock()
    last = -1

    def say(done: int, total: int | None) -> None:
        nonlocal said, last
        now = clock()
        is_end = total is not None and done >= total
        if done == last or not (is_end or now - said >= SECONDS_PER_LINE):
            return
        said, last = now, done
        rate = done / max(now - began, 1e-9)
        of = left = ""
        if total is not None:
            of = f" of {total:,}"
            left = f", {(total - done) / rate:,.0f} s left" if rate and not is_end else ""
        text = f"scored {done:,}{of} rows, {rate:,.0f} rows/s{left}"
        with suppress(OSError):  # whoever has read it may be gone: the job goes on
            print(text, file=sys.stderr, flush=True)

    return say
