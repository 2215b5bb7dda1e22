"""The Databricks task that scores again rows whose error may pass.

It takes the arguments of `lakescore retry`.
"""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["retry", *sys.argv[1:]])
