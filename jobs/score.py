"""The Databricks task that scores a table: the same arguments as `lakescore score`."""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
