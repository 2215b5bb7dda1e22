"""What the doctor makes of what it finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lakescore import doctor
from lakescore.doctor import Check
from lakescore.errors import ModelError
from lakescore.java import REMEDY, Java


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.9.0+cu128", (2, 9, 0)), ("4.57.1", (4, 57, 1)), ("5.0rc1", (5, 0)), ("3.1.dev0", (3, 1))],
)
def test_versions_are_compared_by_their_leading_numbers(
    text: str, numbers: tuple[int, ...]
) -> None:
    assert doctor.parse(text) == numbers


@pytest.mark.parametrize(
    ("found", "status"),
    [((3, 11, 7), "ok"), ((3, 12, 1), "ok"), ((3, 13, 0), "warn"), ((3, 10, 4), "warn")],
)
def test_python_3_11_and_3_12_are_fine(found: tuple[int, ...], status: str) -> None:
    assert doctor.python_check(found).status == status


@pytest.mark.parametrize(
    ("spark", "delta", "remedy"),
    [
        ("3.5.9", "3.3.2", ""),
        ("4.0.1", "4.0.1", ""),
        ("4.1.1", "4.1.0", ""),
        ("4.1.1", "4.3.1", ""),
        ("4.1.1", "4.0.1", "install delta-spark==4.3.1 for Spark 4.1"),
        ("4.1.1", "4.4.1", "install delta-spark==4.3.1 for Spark 4.1"),
        (
            "4.1.2",
            "4.3.1",
            "Delta breaks from pyspark 4.1.2 on: install pyspark==4.1.1 delta-spark==4.3.1",
        ),
        ("4.2.0", "4.4.1", "no Delta release works with Spark 4.2 yet: install pyspark==4.1.1"),
        ("4.0.1", "3.3.2", "install delta-spark==4.0.1 for Spark 4.0"),
        ("3.5.9", "4.0.1", "install delta-spark==3.3.2 for Spark 3.5"),
    ],
)
def test_spark_and_delta_must_fit_each_other(spark: str, delta: str, remedy: str) -> None:
    assert doctor.spark_check(spark, delta, None) == Check(
        name="Spark + Delta",
        status="fail" if remedy else "ok",
        found=f"pyspark {spark}, delta-spark {delta}",
        remedy=remedy,
    )


def test_a_databricks_runtime_brings_its_own_spark_and_delta() -> None:
    assert doctor.spark_check(None, None, "18.0") == Check(
        name="Spark + Delta", found="those of Databricks Runtime 18.0"
    )


def test_missing_spark_names_the_extra() -> None:
    found = doctor.spark_check(None, None, None)
    assert (found.status, found.found) == ("fail", "pyspark missing, delta-spark missing")
    assert "lakescore[local]" in found.remedy


def test_java_that_does_not_fit_fails_only_where_spark_is() -> None:
    old = Java(Path("/opt/jdk8"), 8, "Java 8, where Spark needs 17 or 21")
    expected = {"name": "Java", "found": f"/opt/jdk8: {old.unfit}", "remedy": REMEDY}
    assert doctor.java_check(None, [old], wanted=True) == Check(status="fail", **expected)
    assert doctor.java_check(None, [old], wanted=False) == Check(status="warn", **expected)
    fit = Java(Path("/opt/jdk21"), 21)
    assert doctor.java_check(fit, [old], wanted=True) == Check(
        name="Java", found="21 in /opt/jdk21"
    )


def test_jars_of_another_delta_are_not_those_wanted() -> None:
    jars = ["io.delta_delta-spark_2.13-4.0.1.jar", "io.delta_delta-storage-4.3.1.jar"]
    assert doctor.jars_check("4.3.1", jars).status == "warn"
    held = "io.delta_delta-spark_4.1_2.13-4.3.1.jar"
    assert doctor.jars_check("4.3.1", [*jars, held]) == Check(name="Delta's jars", found=held)


def test_each_device_of_torch_has_a_line() -> None:
    assert doctor.torch_check("2.9.0+cu128", [("cpu", "float32"), ("cuda:0", "H200")], "") == [
        Check(name="torch", found="2.9.0+cu128"),
        Check(name="device cpu", found="float32"),
        Check(name="device cuda:0", found="H200"),
    ]


@pytest.mark.parametrize(
    ("found", "problem"), [(None, ""), ("2.5.1", ""), ("2.9.0", "OSError: libcudart.so.12")]
)
def test_torch_that_is_missing_old_or_broken_is_one_failure(
    found: str | None, problem: str
) -> None:
    (check,) = doctor.torch_check(found, [], problem)
    assert check.status == "fail"
    assert check.remedy


@pytest.mark.parametrize(
    ("found", "kernels", "status"),
    [
        ("4.50.0", None, "ok"),
        ("4.57.1", None, "ok"),
        ("5.22.2", None, "ok"),
        ("4.49.0", None, "fail"),
        ("5.23.0", None, "fail"),
        (None, None, "fail"),
        ("4.57.1", "0.4.0", "warn"),
        ("5.2.0", "0.4.0", "warn"),
        ("5.3.0", "0.4.0", "ok"),
        ("4.55.0", "0.4.0", "ok"),
    ],
)
def test_transformers_is_held_to_its_range_and_its_cve(
    found: str | None, kernels: str | None, status: str
) -> None:
    check = doctor.transformers_check(found, kernels)
    assert check.status == status
    assert ("CVE-2026-4372" in check.remedy) == (status == "warn")


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlflow.db", Path("mlflow.db")),
        ("sqlite:////var/mlflow.db", Path("/var/mlflow.db")),
        ("databricks", None),
        ("http://localhost:5000", None),
    ],
)
def test_only_a_sqlite_store_is_a_file(uri: str, file: Path | None) -> None:
    assert doctor.store_file(uri) == file


def test_asking_for_a_store_does_not_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctor.store_check("sqlite:///mlflow.db")
    expected = "sqlite:///mlflow.db, which the first run creates"
    assert found == Check(name="MLflow store", found=expected)
    models: dict[doctor.Task, str] = {"entities": "models:/ner@champion"}
    *_, model = doctor.checks(models=models, tracking_uri="sqlite:///mlflow.db", environment={})
    assert (model.name, model.status, model.found) == ("entities model", "warn", models["entities"])
    assert list(tmp_path.iterdir()) == []


def test_a_broken_installation_is_a_finding_and_an_own_error_keeps_its_words() -> None:
    def broken() -> str:
        raise ImportError("libstdc++.so.6: cannot open\nsecond line")

    def refused() -> str:
        raise ModelError("models:/ner@champion: no such alias; register it")

    assert doctor.ask("it", broken, "install it again") == Check(
        name="it",
        status="fail",
        found="ImportError: libstdc++.so.6: cannot open",
        remedy="install it again",
    )
    assert doctor.ask("it", refused, "install it again") == Check(
        name="it", status="fail", found="models:/ner@champion: no such alias; register it"
    )


def test_the_table_is_aligned_and_remedies_stand_below() -> None:
    found = [
        Check(name="Python", found="3.11.7"),
        Check(name="Spark + Delta", status="fail", found="none", remedy="pip install it"),
    ]
    assert doctor.render(found) == (
        "ok    Python         3.11.7\n"
        "fail  Spark + Delta  none\n"
        "                     -> pip install it"
    )


@pytest.mark.parametrize(
    ("statuses", "code"), [(("ok", "warn"), 0), (("ok", "fail", "warn"), 1), (("ok",), 0)]
)
def test_only_a_failure_makes_the_exit_code_1(statuses: tuple[str, ...], code: int) -> None:
    found = [Check(name="x", status=status, found="y") for status in statuses]
    assert doctor.exit_code(found) == code


def test_a_torch_that_does_not_import_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open')", "utf-8")
    paths = [str(tmp_path), str(Path(doctor.__file__).parents[1])]
    code = "from lakescore import doctor; print(doctor.devices())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("([], 'OSError: libcudart.so.12: cannot open')\n", "")
