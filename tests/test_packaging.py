"""`pip install` gives the package `vat`. Each extra has what its parts need."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import vat

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources: setuptools leaves a folder next to them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    outside = {name for name in names if not name.startswith(("vat/", f"virtual_adversarial_training-{vat.__version__}.dist-info/"))}
    assert not outside
    own = (path for path in (ROOT / "src" / "vat").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {name for name in names if name.startswith("vat/")} == {path.relative_to(ROOT / "src").as_posix() for path in own}
    assert "vat/py.typed" in names


def test_what_is_installed_works_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import vat; from vat.data.sets.shipped import read_digits; print(vat.__file__, len(read_digits()[0]))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout.split() == [str(tmp_path / "vat" / "__init__.py"), "1797"]


def test_the_commands_are_no_modules_of_the_environment(tmp_path):
    names = [path.stem for path in (ROOT / "src").glob("*.py")] + ["hydra_plugins.grids"]
    assert "train" in names
    code = f"import importlib.util as u\nfor n in {names}:\n  try: print(n, u.find_spec(n))\n  except ModuleNotFoundError: print(n, None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env={})
    assert done.stdout.splitlines() == [f"{name} None" for name in names]


def test_the_version_is_that_of_the_metadata():
    assert version("virtual-adversarial-training") == vat.__version__


def test_all_extras_together_are_the_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.split("#")[0].strip() for line in lines if not line.startswith("#")}
    inner = re.fullmatch(r"virtual-adversarial-training\[(.+)\]", EXTRAS["all"][0])
    extras = [*EXTRAS["all"][1:], *(line for name in inner[1].split(",") if name == "lightning" for line in EXTRAS[name])]
    assert {*PROJECT["dependencies"], *extras} == required


ABSENT = ("hydra", "omegaconf", "wandb", "matplotlib", "sklearn", "pandas", "pyarrow", "optuna")
ONLY = f"""
import builtins
whole = builtins.__import__
def without(name, globals=None, *others):
    if (globals or {{}}).get('__name__', '').startswith('vat') and name.split('.')[0] in {ABSENT}:
        raise ModuleNotFoundError(name)  # only for this package: torchmetrics reads the metadata and imports what is installed
    return whole(name, globals, *others)
builtins.__import__ = without
import vat.lightning
from vat.data.own import arrays, images
from vat.data.sets import cifar, digits, mnist, norb, svhn, synthetic
"""


def test_the_lightning_extra_suffices_for_callback_module_and_data():
    subprocess.run([sys.executable, "-c", ONLY], check=True, env={"PYTHONPATH": str(ROOT / "src")})


@pytest.mark.long  # installs torch
def test_a_fresh_environment_with_the_lightning_extra_runs_the_example(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[lightning]"], check=True)
    example = shutil.copy(ROOT / "examples" / "your_lightning_module.py", tmp_path)
    done = subprocess.run([python, example], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert float(re.search(r"test/error\s*│\s*([\d.]+)", done.stdout)[1]) < 0.3
