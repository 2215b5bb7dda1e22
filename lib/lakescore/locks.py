"""One process at a time on a folder or a file of this machine.

The lock is the system's own: it leaves no file behind, and goes with its process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def locked(path: str, *, wait: bool, is_file: bool = False) -> Iterator[None]:
    """Be the only process at work on a folder or a file, which is made if it is not there.

    Raises:
        BlockingIOError: another process is at work on it, and `wait` is False.
        OSError: it cannot be made or opened.
    """
    import fcntl  # which Windows has not

    os.makedirs(os.path.dirname(path) if is_file else path, exist_ok=True)
    opened = os.open(path, os.O_RDWR | os.O_CREAT if is_file else os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(opened)
