"""Training steps on torch's meta device, whose tensors have no values. An operation that makes a CPU wait for a GPU fails there."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vat.lightning.classifier
import vat.network
from vat import VAT, Adversarial, ClassBalance, Entropy, MeanTeacher, PiModel, RandomPerturbation, Step
from vat.data.loader import Chain, Flip, ResidentLoader, Translate
from vat.directions import DIRECTIONS
from vat.lightning.classifier import Classifier
from vat.models import CNN, MLP, ConvSmall, WhitenedCNN, WideResNet
from vat.regularizers import PublishedVAT
from vat.step import Key

META = torch.device("meta")
REGULARIZERS = {
    **{name: lambda name=name: VAT(1.0, direction=name) for name in DIRECTIONS},
    "both derivatives": lambda: VAT(1.0, direction="finite_difference", gradient_through_r=True, gradient_through_target=True),
    "signed": lambda: VAT(1.0, choose_sign=True),
    "Linf": lambda: VAT(1.0, norm="linf"),
    "Bernoulli": lambda: VAT(1.0, divergence="bernoulli"),
    "Gaussian": lambda: VAT(1.0, divergence="gaussian"),
    "published": lambda: PublishedVAT(1.0),
    "random perturbation": lambda: RandomPerturbation(1.0),
    "adversarial": lambda: Adversarial(1.0),
    "entropy": Entropy,
    "class balance": ClassBalance,
    "Π model": PiModel,
    "mean teacher": MeanTeacher,
}
NETWORKS = {
    "MLP": lambda: MLP((3, 32, 32), 10, hidden=(8,), noise=0.1, dropout=0.1, batch_norm_logits=True),
    "CNN": lambda: CNN((3, 32, 32), 10),
    "ConvSmall": lambda: ConvSmall((3, 32, 32), 10),
    "WhitenedCNN": lambda: WhitenedCNN((3, 32, 32), 10, widths=(8, 8, 8)),
    "WideResNet": lambda: WideResNet((3, 32, 32), 10),
}


@pytest.fixture(autouse=True)
def _random_numbers(monkeypatch):
    """The meta device has no generators and no autocast. A CPU's generator draws nothing there."""

    class Generator(torch.Generator):
        def __new__(cls, device=None):
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(vat.network, "random_state", lambda seed, device, **_: torch.random.fork_rng(devices=[]))
    monkeypatch.setattr(vat.lightning.classifier, "random_state", lambda seed, device, **_: torch.random.fork_rng(devices=[]))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)


class OneDevice(TorchDispatchMode):
    """Refuse an operation on tensors of two devices, or from one to the other. A number from the CPU is part of the operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {t.device for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor) and t.dim()}
        assert len(devices) <= 1, f"{func} on {devices}"
        return result


def is_there(term, network):
    term.backward()
    return term.device == META and any(p.grad is not None for p in network.parameters())


# a regularizer does not look at the network's kind, except through its direction
@pytest.mark.parametrize(
    ("name", "network"),
    [*((name, "MLP") for name in REGULARIZERS), *((name, network) for network in NETWORKS if network != "MLP" for name in DIRECTIONS)],
)
@pytest.mark.parametrize("reported", [False, True], ids=["", "reported"])
def test_a_regularizer_asks_the_device_for_no_value(name, reported, network):
    module, regularizer = NETWORKS[network]().to(META), REGULARIZERS[name]()
    regularizer.on_fit_start(module)
    x, y = torch.rand(4, 3, 32, 32, device=META), torch.zeros(4, dtype=torch.int64, device=META)
    report = {} if reported else None
    step = Step(module, x, y, key=Key(0), index=torch.arange(4, device=META), start=2, total=8, view=x + 0.1, live=True, report=report)

    with OneDevice():
        assert is_there(regularizer.term(step), module)
        regularizer.on_optimizer_step_end(module)


def test_the_loader_and_the_classifier_ask_the_device_for_no_value():
    x = torch.zeros(20, 3, 32, 32, dtype=torch.uint8, device=META)
    loader = ResidentLoader(
        x,
        torch.zeros(20, dtype=torch.int64, device=META),
        torch.arange(10),
        torch.arange(20),
        batch_size_labeled=4,
        batch_size_unlabeled=6,
        steps_per_epoch=1,
        seed=0,
        augment=Chain(Translate(2), Flip()),
        num_views=2,
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).to(META)
    classifier = Classifier(network, [make() for make in REGULARIZERS.values()], num_classes=10, optimizer=torch.optim.Adam)
    for regularizer in classifier.regularizers.values():
        regularizer.on_fit_start(network)

    (batch,) = loader

    with OneDevice():
        assert is_there(torch.stack(list(classifier.terms(batch, {}).values())).sum(), network)


@pytest.mark.parametrize(
    "penalty", [lambda x: x.sum() * bool(x.isfinite().all()), lambda x: x[torch.arange(len(x))].sum()], ids=["value", "copy"]
)
def test_a_regularizer_that_asks_is_found(penalty, monkeypatch):
    monkeypatch.setattr(VAT, "penalty", lambda self, step: penalty(step.target))
    network = nn.Linear(3, 2).to(META)

    with pytest.raises((RuntimeError, AssertionError), match="meta"), OneDevice():
        VAT(1.0).term(Step(network, torch.rand(4, 3, device=META)))
