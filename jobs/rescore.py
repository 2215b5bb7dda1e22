"""The Databricks task that scores stale rows again.

It takes the arguments of `lakescore rescore`.
"""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["rescore", *sys.argv[1:]])
