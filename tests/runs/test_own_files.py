"""The user's own files in the working directory, and what `--help` shows of them and of the project."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

import evaluate
import export
import predict
import train
from hydra_plugins.working_directory import CONF, WorkingDirectory

ROOT = Path(__file__).parents[2]
NET = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, num_classes, width):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
"""
QUICK = ("trainer.max_steps=2", "data.steps_per_epoch=2", "logger=none", "figures=null", "trainer.enable_progress_bar=false")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a user's package and configuration."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(NET)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: my_package.MyNet\nwidth: 16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_users_network_is_trained_from_the_working_directory_and_exported_if_it_is_allowed(shell, here):
    done = shell(ROOT / "src" / "train.py", "model=mine", "model.width=8", *QUICK, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = here.glob("outputs/*/*/checkpoints/last.ckpt")
    export_it = (ROOT / "src" / "export.py", f"ckpt_path={checkpoint}", "format=torch_export")
    done = shell(*export_it, PYTHONPATH="")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("add allow_targets=[my_package]")
    done = shell(*export_it, "allow_targets=[my_package]", PYTHONPATH="")
    assert done.returncode == 0, done.stderr


def test_jobs_of_a_sweep_find_it_too(shell, here):
    done = shell(ROOT / "src" / "train.py", "-m", "model=mine,mlp", "test=none", *QUICK, PYTHONPATH="")
    assert done.returncode == 0, done.stderr


def test_the_projects_files_come_first_and_that_is_said(here, capsys):
    (here / "conf" / "model" / "mlp.yaml").write_text("_target_: my_package.MyNet\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", ["model=mlp"]).model._target_ == "vat.models.mlp.MLP"
    assert "ignored your conf/model/mlp.yaml, because the project has files of the same names" in capsys.readouterr().err


def places(main):
    search_path = ConfigSearchPathImpl()
    search_path.append("main", main)
    WorkingDirectory().manipulate_search_path(search_path)
    return [element.path for element in search_path.get_path()]


def test_another_hydra_project_is_left_alone(here):
    assert places("file:///elsewhere/conf") == ["file:///elsewhere/conf"]
    assert str(here) not in sys.path
    assert places(str(CONF)) == [str(CONF), f"file://{here / 'conf'}"]
    assert sys.path[-1] == str(here)


def test_in_the_projects_own_folder_nothing_is_added(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    assert places(str(CONF)) == [str(CONF)]


COMMANDS = {"train": train, "evaluate": evaluate, "export": export, "predict": predict}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_five_commands_and_lists_what_is_for_users(name, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config-path", str(CONF), "--help"])
    with pytest.raises(SystemExit, match="0"):
        COMMANDS[name].main()
    said, settings = capsys.readouterr().out.split("Settings (key=value)")
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "ckpt_path: " in settings
    commands = re.findall(rf"^  python src/{name}.py (.*?)(?:   .*)?$", said.replace("train.py  ", "train.py   "), re.MULTILINE)
    assert len(re.findall(rf"^  python src/{name}.py", said, re.MULTILINE)) == 5
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for command in commands:
            compose(name, [word for word in shlex.split(command) if word != "-m" and "," not in word])
    groups = dict(re.findall(r"^  (\w+): (.*(?:\n    .*)*)", said, re.MULTILINE))
    assert not {"schema", "tuned", "hydra"} & groups.keys()
    ours = {path.name for path in CONF.iterdir() if path.is_dir()}
    expected = {"train": ours - {"attack"}, "evaluate": {"attack", "data", "logger"}}.get(name, set())
    assert groups.keys() == expected
    for group, names in groups.items():
        listed = set(re.split(r",\s+", names))
        assert listed == {path.stem for path in (CONF / group).glob("*.yaml")} | ({"mine"} if group == "model" else set())
