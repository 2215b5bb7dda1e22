"""The Databricks task that removes deleted texts from a target's files.

It takes the arguments of `lakescore purge`.
"""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["purge", *sys.argv[1:]])
