"""Delta tables: what is new in the source, and how each row of it gets into the target once."""

from lakescore.tables.changes import CHANGE, HASH
from lakescore.tables.folders import check_seen, folders_in, is_folder, remove
from lakescore.tables.names import (
    absolute,
    describe,
    exists,
    identifier,
    is_path,
    load,
    quoted,
    version,
)
from lakescore.tables.stage import kept, save_aside

__all__ = [
    "CHANGE",
    "HASH",
    "absolute",
    "check_seen",
    "describe",
    "exists",
    "folders_in",
    "identifier",
    "is_folder",
    "is_path",
    "kept",
    "load",
    "quoted",
    "remove",
    "save_aside",
    "version",
]
