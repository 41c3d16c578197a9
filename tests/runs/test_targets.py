"""A checkpoint does not choose what code is run: it names classes from a list, unless the user allows a package."""

import pytest
import torch
from torch import nn

from vat import VAT, MeanTeacher
from vat.models import MLP
from vat.runs import records, schema
from vat.runs.targets import KINDS, RefusedError, few_parameters, make

FACTS = {"input_shape": (3,), "num_classes": 2}
NODES = {
    "model": {"_target_": "vat.models.mlp.MLP"},
    "data": {"_target_": "vat.data.sets.digits.Digits"},
    "regularizers": {"_target_": "vat.VAT", "eps": 1.0},
}


def refusal(node, key, **options):
    with pytest.raises(RefusedError) as error:
        make(node, key, facts=FACTS, **options)
    return str(error.value)


@pytest.mark.parametrize("key", KINDS)
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "vat.data.files.download.os.replace",  # what a module imports is no part of it
        "torch.nn.modules.module.torch.load",
        "torch.nn.Sequential",
        "pytorch_lightning.strategies.Strategy.load_checkpoint",
        "torch.hub.load",
        "torch.load",
        "hydra.utils.instantiate",
        "vatican.Net",
        "vat.runs.training.train",
        "vat.models.mlp.MLP.load_state_dict",
        "vat.Regularizer",
    ],
)
def test_a_target_from_elsewhere_is_refused_wherever_it_is(key, target):
    for node in ({"_target_": target}, NODES[key] | {"a": [{"b": {"_target_": target, "_partial_": True}}]}):
        assert f"_target_={target} is none of this project's" in refusal(node, key)


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("my_package.nets.MyNet", "allow_targets=[my_package]"),
        ("torch.nn.Sequential", "allow_targets=[torch.nn.Sequential]"),  # never all of torch, which holds load
        ("os.system", None),
        ("torch.load", None),  # would unpickle, whoever trusts torch
        ("torch.package.PackageImporter", None),
        ("pytorch_lightning.strategies.Strategy.load_checkpoint", None),
    ],
)
def test_the_remedy_names_what_to_trust(target, remedy):
    said = refusal({"_target_": target}, "model")
    assert said.endswith(remedy) if remedy else "allow_targets" not in said


def test_each_node_names_its_own_kind():
    for key in KINDS:
        for other in KINDS.keys() - {key}:
            assert "is none of this project's" in refusal(NODES[other], key)


@pytest.mark.parametrize("key", KINDS)
def test_every_class_of_the_schema_is_made_by_its_full_name(key):
    needed = {"eps": 1.0, "dir": "a", "train": "a.npz"}
    for kind in KINDS[key].classes:
        if kind.__name__ == "HuggingFace":  # reads a folder: tests/models/test_huggingface.py
            continue
        shape = (3, 32, 32) if "Conv" in kind.__name__ or kind.__name__ in ("CNN", "WhitenedCNN", "WideResNet") else (3,)
        values = {name: value for name, value in needed.items() if name in schema.arguments(kind)}
        node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **values}
        assert type(make(node, key, facts={"input_shape": shape, "num_classes": 2, "counts": [0, 1]})) is kind


def test_short_names_are_known():
    for name, kind, key in (
        ("vat.VAT", VAT, "regularizers"),
        ("vat.models.MLP", MLP, "model"),
        ("vat.regularizers.MeanTeacher", MeanTeacher, "regularizers"),
    ):
        values = {"eps": 1.0} if kind is VAT else {}
        assert type(make({"_target_": name, **values}, key, facts=FACTS)) is kind


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("model", {"_args_": [[3]]}, "takes no _args_"),
        ("model", {"_partial_": True}, "takes no _partial_"),
        ("model", {"_convert_": "all"}, "takes no _convert_"),
        ("model", {"_recursive_": False}, "takes no _recursive_"),
        ("model", {"hidden": [2.5]}, "hidden="),
        ("model", {"hidden": "22"}, "hidden="),
        ("model", {"hidden": [[2]]}, "hidden="),
        ("model", {"hidden": {"_target_": "vat.models.MLP"}}, "is none of this project's arguments"),
        ("model", {"batch_norm": 1}, "batch_norm=1"),
        ("model", {"dropout": "${oc.env:HOME}"}, "is not resolved"),
        ("model", {"init": b"default"}, "init="),
        ("model", {"nonesuch": 1}, "takes no nonesuch"),
        ("model", {3: 1}, "takes no 3"),
        ("regularizers", {"direction": {"_target_": "vat.directions.margin", "_partial_": True}}, "is none of this project's"),
        ("regularizers", {"direction": torch.zeros(2)}, "direction="),
        ("regularizers", {"weight": True}, "weight=True"),
        ("data", {"num_labeled": 1.5}, "num_labeled=1.5"),
    ],
)
def test_arguments_are_plain_values_of_the_declared_types(key, values, said):
    assert said in refusal(NODES[key] | values, key)


@pytest.mark.parametrize(
    "node",
    [
        None,
        [],
        "vat.VAT",
        {},
        {"_target_": []},
        {"_target_": {}},
        {"_target_": None},
        {"_target_": 3},
        {"_target_": ["vat.VAT"]},
        {"_target_": "MLP"},
        {"_target_": "a b.c"},
    ],
)
def test_what_is_no_node_is_refused(node):
    refusal(node, "model")


def test_an_integer_is_a_number():
    assert make(NODES["regularizers"] | {"eps": 2}, "regularizers").eps == 2
    assert make(NODES["data"] | {"num_labeled": None, "labeled_classes": [1, 2]}, "data").labeled_classes == [1, 2]


def test_no_module_is_imported_to_be_refused(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('executed').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal({"_target_": "evil.Net"}, "model").endswith("allow_targets=[evil]")
    assert not (tmp_path / "executed").exists()


def test_more_layers_than_weights_end_before_they_take_memory():
    with pytest.raises(RefusedError, match="more than the 6 weights"), torch.device("meta"), few_parameters(6):
        make({"_target_": "vat.models.WideResNet", "depth": 6 * 10**12 + 4}, "model", facts={"input_shape": (3, 32, 32), "num_classes": 2})
    with few_parameters(2):
        nn.Linear(2, 2)
    nn.Linear(2, 2)


OWN = """
import os
from os import system
from torch import nn
from vat import directions

class Net(nn.Sequential):
    def __init__(self, num_classes, norm=None, direction=None):
        super().__init__(nn.Flatten(), nn.Linear(3, num_classes))
        self.norm, self.direction = norm, direction

class Norm:
    def __init__(self, p):
        self.p = p

class Other:
    pass

def margin(*inputs, scale=1):
    return scale

def net(num_classes):
    return Net(num_classes)

def other():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    import sys

    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_package"
    sys.modules.pop("own_package", None)


def test_an_allowed_package_has_its_classes_made_with_what_they_take(own):
    node = {
        "_target_": "own_package.Net",
        "norm": {"_target_": "own_package.Norm", "p": 3},
        "direction": {"_target_": "own_package.margin", "_partial_": True, "scale": 2},
    }
    assert refusal(node, "model").endswith("allow_targets=[own_package]")
    assert "is none of" in refusal(node, "model", allowed=["own_pack"])
    network = make(node, "model", allowed=["own_package"], facts=FACTS)
    assert network.norm.p == 3
    assert network.direction(1) == 2
    node = NODES["regularizers"] | {"direction": {"_target_": "own_package.margin", "_partial_": True}}
    assert make(node, "regularizers", allowed=["own_package"]).direction(1) == 1


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "own_package.os.system"}, "posix.system, which is in no allowed package"),
        ({"_target_": "own_package.system"}, "posix.system, which is in no allowed package"),
        ({"_target_": "own_package.directions.margin"}, "vat.directions.margin, which is in no allowed package"),
        ({"_target_": "own_package.nn.Linear"}, "torch.nn.modules.linear.Linear, which is in no allowed package"),
        ({"_target_": "own_package.Net.load_state_dict"}, "which is in no allowed package"),
        ({"_target_": "own_package.nowhere"}, "cannot be found"),
        ({"_target_": "own_package.other"}, "makes no network"),
        ({"_target_": "own_package.Other"}, "is no network"),
        ({"_target_": "own_package.Net", "norm": {"_target_": "os.system", "command": "true"}}, "is none of"),
        ({"_target_": "own_package.Net", "_args_": [3]}, "_args_"),
        ({"_target_": "own_package.Net", "norm": "${a}"}, "is not resolved"),
    ],
)
def test_an_allowed_package_allows_what_it_defines_alone(own, node, said):
    with pytest.raises(RefusedError, match=said):
        make(node, "model", allowed=[own], facts=FACTS)


def test_a_function_of_ones_own_may_make_it(own):
    for allowed in ("own_package", "own_package.net"):
        assert isinstance(make({"_target_": "own_package.net"}, "model", allowed=[allowed], facts=FACTS), nn.Sequential)


@pytest.mark.parametrize("entry", ["torch", "torch.nn", "os", "vat", "vat.runs", "torch.nn.modules"])
def test_a_library_is_not_allowed_as_a_whole(entry):
    for target in ("torch.load", "torch.nn.Sequential", "os.system", "vat.runs.training.train", "torch.nn.modules.module.torch.load"):
        assert "is none of" in refusal({"_target_": target}, "model", allowed=[entry])
    assert type(make({"_target_": "torch.nn.Flatten"}, "model", allowed=["torch.nn.Flatten"], facts=FACTS)) is nn.Flatten


@pytest.mark.parametrize("name", ["torch.load", "os.system", "subprocess.Popen", "torch.package.PackageImporter"])
def test_of_a_library_a_layer_is_allowed_and_nothing_else(name):
    assert "is in no allowed package" in refusal({"_target_": name, "f": "a"}, "model", allowed=[name]).replace("which is", "is")


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
