"""A wheel that is built from the tree holds every module, and the library and the scripts run from it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built in a copy of the tree, since building leaves files behind."""
    pytest.importorskip("setuptools", "70.1")  # older ones need the package `wheel`
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "minibert", folder / "minibert", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([PYTHON, "-c", code], cwd=folder, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_every_module_is_in_the_wheel(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "minibert").rglob("*.py")}


@pytest.mark.slow
def test_the_library_and_the_scripts_run_from_the_wheel(wheel, tmp_path):
    """The scripts are copied away from the checkout, whose minibert they would import."""
    pip = [PYTHON, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    for name in ("train.py", "finetune.py", "bench.py"):
        shutil.copy(ROOT / name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*words):
        return subprocess.run([PYTHON, *words], cwd=tmp_path, env=environment, check=True, text=True,
                              stdout=subprocess.PIPE).stdout

    code = "import minibert as m; print(m.__file__, *(getattr(m, name) for name in m.__all__))"
    assert run("-c", code).startswith(str(tmp_path / "site"))
    for name in ("train.py", "finetune.py", "bench.py"):
        assert run(name, "--help").strip()
