"""A snapshot on every executor: by broadcast, or as an artifact where there is only Connect."""

import io
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.errors import ModelError
from lakescore.locks import locked
from lakescore.snapshot import Snapshot, open_snapshot

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PARTITIONS_PER_SLOT = 4
# What this driver has sent already, by application and fingerprint.
_SENT: dict[tuple[str, str], "Shipped"] = {}
# What this worker has checked already.
_OPENED: dict[str, Path] = {}


@dataclass(frozen=True)
class Shipped:
    """A snapshot on its way to the workers; a UDF's closure carries it.

    Attributes:
        fingerprint: The snapshot's.
        broadcast: Spark's broadcast of the snapshot as a zip archive, or None.
        artifact: The archive's name among Spark's files, where there is no broadcast.
    """

    fingerprint: str
    broadcast: Any
    artifact: str | None

    def folder(self) -> Path:
        """Return the snapshot's folder on this host, unpacked by the first worker to need it.

        Every worker unpickles a broadcast for itself, so only that first one touches it.
        """
        folder = _OPENED.get(self.fingerprint)
        if folder is None:
            folder = own_folder() / self.fingerprint
            if not self._is_whole(folder):
                self._unpack(folder)
            _OPENED[self.fingerprint] = folder
        return folder

    def _unpack(self, folder: Path) -> None:
        """Unpack aside and rename, one worker of a host at a time, if no other has done it."""
        with locked(str(folder.parent / ".lock"), wait=True, is_file=True):
            if self._is_whole(folder):
                return
            shutil.rmtree(folder, ignore_errors=True)  # a cleaner of /tmp may have left a part
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as aside:
                unpacked = Path(aside) / folder.name
                with zipfile.ZipFile(self._archive()) as archive:
                    archive.extractall(unpacked)
                unpacked.rename(folder)
            if not self._is_whole(folder):
                raise ModelError(f"{folder}: was changed while it was unpacked; run the job again")

    def _is_whole(self, folder: Path) -> bool:
        try:
            return open_snapshot(folder).fingerprint == self.fingerprint
        except (ModelError, OSError):
            return False

    def _archive(self) -> Any:
        if self.artifact is None:
            return io.BytesIO(self.broadcast.value)
        from pyspark import SparkFiles

        return SparkFiles.get(self.artifact)


def is_connect(spark: "SparkSession") -> bool:
    """Tell a Spark Connect session, which has no SparkContext, from a classic one."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def slots_of(spark: "SparkSession") -> int:
    """Return how many tasks can run at once, by the executors' cores and their GPUs."""
    from pyspark.sql import functions as F

    if not is_connect(spark):
        # What Spark asks itself before a barrier stage; defaultParallelism counts cores alone.
        context = spark.sparkContext._jsc.sc()
        profile = context.resourceProfileManager().defaultResourceProfile()
        # None where the only executor has just been lost.
        return int(context.maxNumConcurrentTasks(profile) or context.defaultParallelism())
    # Connect has no call for it; a range has as many partitions, if it has so many rows.
    parts = spark.range(100_000).select(F.spark_partition_id())
    return int(parts.distinct().count())  # from Connect 3.5 it is one of numpy


def spread(df: "DataFrame", partitions: int | None) -> "DataFrame":
    """Divide rows into `partitions`, or some for each task that can run at once.

    One small file would be one task.
    """
    return df.repartition(partitions or slots_of(df.sparkSession) * PARTITIONS_PER_SLOT)


def ship(spark: "SparkSession", snapshot: Snapshot) -> Shipped:
    """Send a snapshot to the executors, once for an application.

    With a SparkContext it is broadcast; on Spark Connect, which has none, it is an artifact.
    """
    if is_connect(spark):
        application = spark.session_id  # type: ignore[attr-defined]  # Connect's own attribute
    else:
        application = spark.sparkContext.applicationId
    known = _SENT.get((application, snapshot.fingerprint))
    if known is None:
        known = _SENT[(application, snapshot.fingerprint)] = _send(spark, snapshot)
    return known


def _send(spark: "SparkSession", snapshot: Snapshot) -> Shipped:
    if not is_connect(spark):
        archive = io.BytesIO()
        _pack(snapshot.folder, archive)
        broadcast = spark.sparkContext.broadcast(archive.getvalue())
        return Shipped(snapshot.fingerprint, broadcast, None)
    name = f"lakescore-{snapshot.fingerprint}.zip"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        _pack(snapshot.folder, path)
        spark.addArtifacts(str(path), file=True)
    return Shipped(snapshot.fingerprint, None, name)


def _pack(folder: Path, target: Any) -> None:
    # Weights do not compress: the archive only makes one value, or one file, of several.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)


def own_folder() -> Path:
    """Return this user's own folder on the host's local disk, where workers keep snapshots."""
    root = Path(tempfile.gettempdir()) / f"lakescore-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if os.stat(root).st_uid != os.getuid():
        root = Path(tempfile.mkdtemp(prefix="lakescore-"))
    return root


def device_for(addresses: list[str], partition: int, device_count: int) -> str:
    """Choose a worker's device: the one that Spark assigned, else one by the partition, or "cpu".

    `addresses` are the GPU addresses in the task's resources, none where GPU scheduling is off;
    `device_count` the GPUs that this process sees.
    """
    if device_count == 0:
        return "cpu"
    if addresses and addresses[0].isdecimal() and int(addresses[0]) < device_count:
        return f"cuda:{int(addresses[0])}"
    return f"cuda:{partition % device_count}"


def task_device(device_count: int) -> tuple[str, int]:
    """Return this Spark task's (device, CPU threads)."""
    from pyspark import TaskContext

    task = TaskContext.get()
    if task is None:
        return device_for([], 0, device_count), 1
    gpu = task.resources().get("gpu")
    return device_for(gpu.addresses if gpu else [], _first_partition(), device_count), task.cpus()


def is_repeated() -> bool:
    """Tell whether this Spark task was tried before: its worker may have died of a text."""
    from pyspark import TaskContext

    task = TaskContext.get()
    return task is not None and task.attemptNumber() > 0


@cache
def _first_partition() -> int:
    """Return this worker's first partition: it keeps that one's device, and loads models once."""
    from pyspark import TaskContext

    task = TaskContext.get()
    return task.partitionId() if task else 0
