"""A configuration or a checkpoint does not choose what code is run, unless the user says so."""

import pytest
import torch

from vat.runs import records
from vat.runs.targets import refuse_foreign


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "vat.data.files.download.os.replace",  # what a module imports is no part of it
        "torch.nn.modules.module.torch.load",
        "pytorch_lightning.trainer.connectors.signal_connector.call",
        "torch.hub.load",
        "torch.load",
        "hydra.utils.instantiate",
        "vatican.Net",
        "runs.make_network",
    ],
)
def test_a_target_from_elsewhere_is_refused_wherever_it_stands(target):
    for node in ({"_target_": target}, {"a": [{"b": {"_target_": target, "_partial_": True}}]}):
        with pytest.raises(ValueError, match=rf"_target_={target} is none of .*allow_targets=\[{target.split('.')[0]}\]"):
            refuse_foreign(node)


@pytest.mark.parametrize(
    "target", ["vat.VAT", "torch.nn.Linear", "torch.nn.modules.linear.Linear", "torch.optim.Adam", "pytorch_lightning.loggers.CSVLogger"]
)
def test_what_is_this_projects_is_taken(target):
    refuse_foreign({"_target_": target, "inner": {"_target_": "vat.MeanTeacher"}})


def test_no_module_is_imported_to_be_refused(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('executed').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"allow_targets=\[evil\]"):
        refuse_foreign({"_target_": "evil.Net"})
    assert not (tmp_path / "executed").exists()


def test_the_user_says_so_by_package_or_on_the_command_line():
    node = {"_target_": "my_package.nets.MyNet"}
    refuse_foreign(node, allowed=["my_package"])
    refuse_foreign(node, typed=["model=custom", "model._target_=my_package.nets.MyNet"])
    with pytest.raises(ValueError, match="my_package"):
        refuse_foreign(node, allowed=["my_pack"], typed=["model._target_=other.Net"])


NET = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]  # values, as of stochastic depth
        super().__init__(nn.Flatten(), nn.Dropout(rates[1]), nn.Linear(64, num_classes))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_network_of_ones_own_is_typed_and_its_checkpoint_is_read_by_those_who_allow_it(main, package, tmp_path):
    main("model=custom", "model._target_=theirs.Net", "test=none")
    (path,) = tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"_target_=theirs\.Net .*allow_targets=\[theirs\]"):
        records.load_network(path)
    assert records.load_network(path, allow_targets=["theirs"])(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_file_needs_the_switch(job, package):
    # Composed without a command line, as a file would be.
    with pytest.raises(ValueError, match=r"_target_=theirs\.Net .*allow_targets=\[theirs\]"):
        job("model=custom", "model._target_=theirs.Net")
    job("model=custom", "model._target_=theirs.Net", "allow_targets=[theirs]", "test=none")
