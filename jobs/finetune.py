"""The Databricks task that makes a checkpoint of a labelled table.

It takes the arguments of `lakescore finetune`.
"""

import sys

from lakescore.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
