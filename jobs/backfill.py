"""The Databricks task that compares a whole source with its target: arguments of `lakescore score`.

It is `score` with `source.changes=snapshot`, whatever the configuration says.
"""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:], "--set=source.changes=snapshot"])
