"""`model=custom`: a network that does not fit is refused in one line, before anything runs."""

import json
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

NETWORKS = """
import torch
from types import SimpleNamespace
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    def forward(self, x):
        return self.layers(x)

class Pair(Net):
    def forward(self, x):
        return self.layers(x), x

class Answer(Net):
    def forward(self, x):
        return SimpleNamespace(logits=self.layers(x))

class Nine(Net):
    def __init__(self):
        super().__init__(9)

class Map(Net):
    def forward(self, x):
        return self.layers(x)[:, :, None, None].expand(-1, -1, 8, 8)

class Classes(Net):
    def forward(self, x):
        return self.layers(x).argmax(1)

class Wide(Net):
    def forward(self, x):
        return self.layers(x.repeat(1, 1, 2, 1))

class Nan(Net):
    def forward(self, x):
        return self.layers(x) / 0

class Dictionary(Net):
    def forward(self, x):
        return {"logits": self.layers(x)}

class Auxiliary(Net):
    def forward(self, x):
        logits = self.layers(x)
        return (logits, logits) if self.training else logits

class Untrainable(Net):
    def forward(self, x):
        if self.training:
            raise KeyError("mode")
        return self.layers(x)

class OfTwo(Net):
    def forward(self, x):
        return self.layers(x.reshape(2, 64))

class InPlace(Net):
    def forward(self, x):
        return self.layers(x.mul_(0.5))

class Lazy(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

class NoInit(nn.Module):
    def __init__(self, num_classes):
        self.layer = nn.Linear(64, num_classes)

class AlwaysDropout(Net):
    def forward(self, x):
        return self.layers(nn.functional.dropout(x, 0.3))

class OfTheBatch(Net):
    def forward(self, x):
        return self.layers(x - x.mean(0))

class Normalised(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, num_classes))

class Frozen(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.requires_grad_(False)

class Detached(Net):
    def forward(self, x):
        return self.layers(x.detach())

class NoGradient(Net):
    @torch.no_grad()
    def forward(self, x):
        return self.layers(x)

class Width(Net):
    def __init__(self, num_classes, width):
        super().__init__(num_classes)

class Random(Net):
    def forward(self, x):
        return self.layers(x + torch.randn_like(x))

def number():
    return 3

module = Net(10)

def build(num_classes, input_shape):
    assert tuple(input_shape) == (1, 8, 8)
    return Net(num_classes)
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    (tmp_path / "trial_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Pair", r"it returned a tuple: return output\[0\] in its forward"),
        ("Answer", r"it returned a SimpleNamespace: return output\.logits in its forward"),
        ("Nine", r"it returned shape \(2, 9\), float32"),
        ("Map", r"it returned shape \(2, 10, 8, 8\), float32"),
        ("Classes", r"it returned shape \(2,\), int64"),
        ("Wide", r"it raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("Nan", r"it returned (NaN|an infinite value) before any training"),
        ("Auxiliary", r"in training mode it returned a tuple: return output\[0\] in its forward"),
        ("Untrainable", r"in training mode it raised KeyError: 'mode'"),
        ("OfTwo", r"in training mode it raised RuntimeError: shape '\[2, 64\]' is invalid"),
        ("InPlace", r"it changed its inputs\. Replace operations in place, such as x \*= 2 by x = x \* 2"),
        ("Dictionary", r'it returned a dict: return output\["logits"\] in its forward'),
    ],
)
def test_what_a_network_returned_and_what_is_expected_is_one_line(main, networks, tmp_path, name, said):
    with pytest.raises(SystemExit) as end:
        main("model=custom", f"model._target_=trial_networks.{name}")
    expected = rf"error: model={name} must map inputs of shape \(([23]), 1, 8, 8\) to logits of shape \(\1, 10\), but {said}"
    assert re.match(expected, str(end.value.code))
    assert "\n" not in str(end.value.code)
    assert not list(tmp_path.glob("outputs/*/*/checkpoints/*.ckpt"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trial_networks.Frozen", r"model=Frozen has no weights to train"),
        ("trial_networks.Detached", r"model=Detached: no gradient leads from its output to its inputs.* add regularizer=none test=none"),
        ("trial_networks.NoGradient", r"model=NoGradient: no gradient leads from its output to its inputs"),
        ("trial_networks.Width", r"makes no network \(.*missing 1 required positional argument: 'width'\)\. \+model\.NAME=value gives it"),
        ("trial_networks.NoInit", r"NoInit makes no network \(cannot assign module before Module\.__init__\(\) call\)$"),
        ("trial_networks.Lazy", r"Lazy has layers without a size, such as nn\.LazyLinear\. Give their sizes, or call the network once"),
        ("trial_networks.number", r"model\._target_=trial_networks\.number must make a torch\.nn\.Module, got int"),
        ("trial_networks.module", r"is a Net: name a class or a function that makes a network"),
        ("trial_networks", r"is a module: name a class or a function that makes a network"),
        ("trial_networks.Nothing", r"cannot be found \(.*\): name a class or a function"),
        ("no_such_module.Net", r"cannot be found \(.*No module named 'no_such_module'.*\): name a class or a function"),
        ("null", r"model\._target_=None cannot be found"),
    ],
)
def test_what_makes_no_network_is_refused_in_one_line(main, networks, name, said):
    with pytest.raises(SystemExit, match=said) as end:
        main("model=custom", f"model._target_={name}")
    assert "\n" not in str(end.value.code)


def test_a_network_without_a_gradient_to_its_inputs_is_trained_without_vat(main, networks, tmp_path):
    main("model=custom", "model._target_=trial_networks.Detached", "regularizer=none", "test=none", "hydra.run.dir=run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val/accuracy"] >= 0


def test_a_network_that_draws_random_numbers_is_not_exported(main, networks, tmp_path):
    from vat.runs.exporting import export

    main("model=custom", "model._target_=trial_networks.Random", "hydra.run.dir=run", "test=none")
    with pytest.raises(ValueError, match=r"last\.ckpt: the network gives another output at each call"):
        export(tmp_path / "run" / "checkpoints" / "last.ckpt", "safetensors", allow_targets=["trial_networks"])


@pytest.mark.parametrize(
    ("name", "warned"), [("Net", False), ("Random", True), ("AlwaysDropout", True), ("OfTheBatch", True), ("Normalised", False)]
)
@pytest.mark.parametrize("number", [1, 40])
def test_predictions_that_differ_from_run_to_run_are_said(main, networks, tmp_path, name, warned, number):
    from vat.runs.predicting import predict

    main("model=custom", f"model._target_=trial_networks.{name}", "hydra.run.dir=run", "test=none")
    x = np.random.default_rng(0).random((number, 1, 8, 8), np.float32)
    np.savez(tmp_path / "new.npz", x=x)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        given = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "new.npz", tmp_path / "out.csv"
        assert predict(*given, allow_targets=["trial_networks"]) == number
    said = [str(warning.message) for warning in found if "the predictions differ from run to run" in str(warning.message)]
    alone = name == "OfTheBatch" and number == 1  # without others, nothing differs
    assert len(said) == (warned and not alone)


@pytest.mark.parametrize("name", ["Net", "build"])
def test_a_class_and_a_function_that_makes_a_network_train_alike(main, networks, tmp_path, name):
    main("model=custom", f"model._target_=trial_networks.{name}", "hydra.run.dir=" + name)
    assert json.loads((tmp_path / name / "metrics.json").read_text())["val/accuracy"] >= 0


def data(num_classes):
    return SimpleNamespace(x=torch.rand(4, 3), num_classes=num_classes, split=SimpleNamespace(labeled=torch.arange(4)))


@pytest.mark.parametrize("layers", [nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), nn.Linear(3, 2)])
def test_two_classes_may_have_a_single_logit(layers):
    from vat.runs.trial import refuse_unusable

    refuse_unusable(layers, data(2))
    with pytest.raises(ValueError, match=r"to logits of shape \(2, 3\), but it returned shape"):
        refuse_unusable(layers, data(3))


def test_the_trial_leaves_mode_statistics_and_random_state_alone():
    from vat.runs.trial import refuse_unusable

    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    network[1].eval()
    given = data(2)
    before, state = [p.clone() for p in network.state_dict().values()], torch.get_rng_state()
    refuse_unusable(network, given)
    assert [module.training for module in network] == [True, False, True]
    assert all(map(torch.equal, before, network.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())
