"""The package: the library under lib/ alone; ranges here, exact pins in conf/runtimes/."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "lib/lakescore/_version.py").read_text("utf-8"), re.M
)
assert VERSION, "lib/lakescore/_version.py has no __version__"
# databricks.yml tells its builds from each other: two wheels of one name are one to Databricks.
BUILD = os.environ.get("LAKESCORE_BUILD")

# Every lower bound admits what Databricks Runtime 16.4 LTS ML and later bring, so that installing
# the wheel there pulls nothing over the runtime's own packages. 16.4 has pandas 1.5.3; pandas 3
# is not fully supported by Spark. pyspark is not named: on a cluster the runtime brings its own.
REQUIRES = [
    "click>=8.1",
    "huggingface_hub>=0.26",
    "jinja2>=3.1",
    "matplotlib>=3.7",
    "mlflow-skinny>=2.21",
    "numpy>=1.26",
    "pandas>=1.5,<3",
    "pyarrow>=15",
    "pydantic>=2.7",
    "pyyaml>=6.0",
    "safetensors>=0.4.3",
    "torch>=2.6",
    "tqdm>=4.64",
    # 5.23 names its pipelines by strings, with which MLflow up to 3.17 cannot log a model.
    "transformers>=4.50,<5.23",
]

# Spark, Delta and an MLflow with a local store, for a machine that is not a Databricks cluster.
# delta-spark's own metadata holds pyspark to a version that it works with; 4.4's jar is for 4.2.
SPARK = [
    "mlflow>=2.21",
    "pyspark[connect]>=3.5,<4.3",
]
LOCAL = ["delta-spark>=3.3,<4.4", *SPARK]

DEV = [
    "build>=1.2",
    "databricks-bundles>=1.22",
    "hypothesis>=6.100",
    "install-jdk>=1.1",
    "jsonschema>=4.20",
    "mypy>=1.13",
    "packaging>=23",
    "psutil>=6",
    "pytest>=8",
    "pytest-xdist>=3.7",
    "ruff>=0.8",
    "types-PyYAML",
    "types-tqdm",
]

setup(
    name="lakescore",
    version=f"{VERSION[1]}+{BUILD}" if BUILD else VERSION[1],
    description="Score the text in Delta tables with Hugging Face models, on Spark, every row once",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "lib"},
    packages=find_packages("lib"),
    package_data={"lakescore": ["py.typed", "*.j2", "**/*.j2"]},
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require={"local": LOCAL, "spark": SPARK, "dev": DEV},
    entry_points={"console_scripts": ["lakescore=lakescore.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Typing :: Typed",
    ],
)
