"""Make the virtual environment what setup.py and conf/runtimes/ say; quick when it is already.

Run by the Makefile with any Python that is to be the environment's own. A file in the environment
holds the key of what was installed; it is written last and removed first, so that an environment
without it is a half-finished one and is made anew. Two makes at once wait for each other.
"""

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY_FILE = "lakescore-installed"


def key_of(root: Path, runtime: str) -> str:
    """What an up-to-date environment was made from; a folder that was moved needs a new one."""
    digest = hashlib.sha256(str(root).encode())
    for name in (f"conf/runtimes/{runtime}.txt", "setup.py"):
        digest.update((root / name).read_bytes())
    return f"{runtime} {digest.hexdigest()}"


def runs(python: Path) -> bool:
    """Whether this environment's Python starts and is one that lakescore supports."""
    test = "import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))"
    try:
        return subprocess.run([python, "-c", test], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install(folder: Path, runtime: str) -> None:
    """Create the environment if it is missing or half finished, and install into it."""
    python, key_file = folder / "bin/python", folder / KEY_FILE
    key = key_of(ROOT, runtime)
    finished = runs(python) and key_file.is_file()
    known = key_file.read_text("utf-8") if finished else ""
    if known == key:
        return
    # Of another runtime's packages none may stay: of some of them this one has none.
    finished = known.startswith(f"{runtime} ")

    if finished:
        say(f"Bringing {folder.name} up to date with setup.py and conf/runtimes/{runtime}.txt.")
        key_file.unlink()
    else:
        say(
            f"Setting up {folder.name} with Python {sys.version.split()[0]}, about 5 minutes, once."
        )
        if sys.platform == "linux":
            say("torch brings about 6 GB of CUDA libraries, which alone takes about 80 seconds;")
            say("while pip works it takes up to 15 GB of disk, and what is left is 9 GB.")
        venv.create(folder, clear=True, symlinks=True, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-input"]
    pip += ["--no-compile"]  # most modules are never imported, and Python compiles those that are
    pip += ["-c", str(ROOT / "conf/runtimes" / f"{runtime}.txt")]
    # The pinned build tools first: pyspark is built from its source, with these and no others.
    subprocess.run([*pip, "pip", "setuptools", "wheel"], check=True)
    # For a Spark of which there is no Delta yet the pins name none.
    pins = (ROOT / "conf/runtimes" / f"{runtime}.txt").read_text("utf-8")
    extras = "local,dev" if "delta-spark==" in pins else "spark,dev"
    # The wheel that is built of pyspark is of jars, which would be compressed a second time.
    build = folder / "build.cfg"
    build.write_text("[bdist_wheel]\ncompression = stored\n", "utf-8")
    subprocess.run(
        [*pip, "--no-build-isolation", "-e", f"{ROOT}[{extras}]"],
        check=True,
        env=os.environ | {"DIST_EXTRA_CONFIG": str(build)},
    )
    key_file.write_text(key, "utf-8")


def say(line: str) -> None:
    """A line for whoever waits; stdout belongs to the command that make runs."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Entry point; the exit status is pip's when pip failed, whose own message stands above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", default="18-lts-ml")
    arguments = parser.parse_args()
    constraints = ROOT / "conf/runtimes" / f"{arguments.runtime}.txt"
    if not constraints.is_file():
        known = ", ".join(sorted(path.stem for path in constraints.parent.glob("*.txt")))
        say(f"RUNTIME={arguments.runtime}: unknown; known: {known}")
        return 2
    folder = Path(os.path.abspath(arguments.folder))
    os.environ.pop("PYTHONHOME", None)
    os.environ.pop("PYTHONPATH", None)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            install(folder, arguments.runtime)
        except subprocess.CalledProcessError as failed:
            say(f"pip could not set up {folder.name}; its message stands above. Then: make again")
            return failed.returncode
        except KeyboardInterrupt:
            say(f"stopped; the next make sets up {folder.name} anew")
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
