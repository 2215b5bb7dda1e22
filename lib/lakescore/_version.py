"""The one place where the version of lakescore is written."""

__version__ = "0.1.0"
