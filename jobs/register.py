"""The Databricks task that puts a model into the registry.

It takes the arguments of `lakescore register`.
"""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["register", *sys.argv[1:]])
