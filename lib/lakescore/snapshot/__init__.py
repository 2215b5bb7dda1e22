"""Models made immutable: resolved once to checked files with a fingerprint; unsafe ones refused."""

from lakescore.snapshot.store import Snapshot, open_snapshot, resolve

__all__ = ["Snapshot", "open_snapshot", "resolve"]
