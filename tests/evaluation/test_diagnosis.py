import math

import networks
import numpy as np
import pytest
import torch
from networks import rows
from torch import nn
from torch.autograd.functional import hessian

from vat import VAT, RandomPerturbation, Step
from vat.directions import DIRECTIONS
from vat.evaluation.diagnosis import diagnose, interpretation, maximum, root_of_hessian, top_eigenpair
from vat.functional import DIVERGENCES, Categorical
from vat.norms import NORMS
from vat.step import Key

KEY = Key(seed=5)
KL = Categorical()
N, D = 6, 5


def network(outputs=4, inputs=D):
    module = networks.network(inputs, 12, outputs, norm=True, dropout=0.5)
    with torch.no_grad():
        module[-1].weight.mul_(3)
    return module.eval()


class Curve(nn.Module):
    """Two logits of inputs (N,)."""

    def forward(self, x):
        return torch.stack([x.sin(), x.square()], 1)


def step(module, x):
    return Step(module, x, key=KEY, live=True)


# ------------------------------------------------------------------------------------------------- the references it judges by


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_the_root_squares_to_the_dense_hessian_and_gives_its_top_eigenpair(name, outputs):
    module, x, divergence = network(outputs), rows(), DIVERGENCES[name]
    root = root_of_hessian(step(module, x), divergence)
    eigenvalues, eigenvectors = top_eigenpair(root)
    for i in range(N):
        row = x[i : i + 1]
        clean = module(row).detach()
        dense = hessian(lambda r, row=row, clean=clean: divergence(clean, module(row + r)).sum(), torch.zeros(1, D).double()).reshape(D, D)
        torch.testing.assert_close(root[i].mT @ root[i], dense, rtol=1e-8, atol=1e-12)
        values, vectors = torch.linalg.eigh(dense)
        torch.testing.assert_close(eigenvalues[i], values[-1])
        assert (eigenvectors[i] @ vectors[:, -1]).abs() > 1 - 1e-9


def test_images_and_a_decision_at_each_position_have_a_root_too():
    torch.manual_seed(0)
    module = nn.Conv2d(2, 3, 3, padding=1).double()
    x = rows(2, 2, 4, 4)
    root = root_of_hessian(step(module, x), KL)
    assert root.shape == (2, 3 * 16, 2 * 16)
    clean = module(x[:1]).detach()
    dense = hessian(lambda r: KL(clean, module(x[:1] + r)).sum(), torch.zeros(1, 2, 4, 4).double()).reshape(32, 32)
    torch.testing.assert_close(root[0].mT @ root[0], dense, rtol=1e-8, atol=1e-12)


def test_a_flat_network_has_the_eigenvalue_0():
    module = network()
    nn.init.zeros_(module[-1].weight)
    eigenvalues, eigenvectors = top_eigenpair(root_of_hessian(step(module, rows()), KL))
    assert not eigenvalues.any()
    assert not eigenvectors.any()


@pytest.mark.parametrize("eps", [0.1, 2.0])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_maximum_is_that_of_a_grid_over_the_ball(norm, eps):
    module, x = network(inputs=2), rows(8, 2)
    reached, where = maximum(step(module, x), KL, NORMS[norm], eps=eps)
    side = torch.linspace(-1, 1, 201, dtype=torch.float64)
    ball = torch.cartesian_prod(side, side)
    if norm == "l2":
        angle = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
        ball = torch.cat([ball[ball.norm(dim=1) <= 1], torch.stack([angle.cos(), angle.sin()], 1)])
    grid = torch.stack([KL(module(row[None]).expand(len(ball), -1), module(row + eps * ball)).max() for row in x])
    assert (reached <= grid * (1 + 2e-3)).all()
    # in L∞ each corner is a local maximum, and one or two rows may end in the second best
    assert (reached / grid).min() > (1 - 2e-3 if norm == "l2" else 0.5)
    assert (reached / grid).mean() > (1 - 2e-3 if norm == "l2" else 0.95)
    assert NORMS[norm].length(where).max() <= 1 + 1e-9
    torch.testing.assert_close(KL(module(x), module(x + eps * where)), reached)


# --------------------------------------------------------------------------------------------------------------- the diagnosis


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_no_direction_exceeds_the_maximum_nor_the_top_eigenvalue(name):
    module, x = network(), rows(40)
    found = diagnose(module, x, VAT(0.5, direction=name), key=KEY)
    assert all(value.shape == (40,) and not value.requires_grad for value in found.values())
    assert (found["lds"] <= found["kl_maximum"] * (1 + 1e-9)).all()
    assert (found["curvature"] <= found["eigenvalue"] * (1 + 1e-9)).all()
    assert (found["kl_at_zero"] == 0).all()
    assert (found["margin"] >= 0).all()
    if name == "random":
        assert found["cosine"].mean() < 0.7
    else:
        assert found["lds"].mean() > 1.5 * found["kl_random"].mean()


def test_many_power_iterations_find_the_eigenvector():
    found = diagnose(network(), rows(40), VAT(1e-3, direction="exact", num_power_iterations=100), key=KEY)
    torch.testing.assert_close(found["curvature"], found["eigenvalue"], rtol=1e-2, atol=0)
    assert found["cosine"].median() > 0.999
    # at a small radius D = ε² λ / 2
    torch.testing.assert_close(found["kl_maximum"], 1e-6 * found["eigenvalue"] / 2, rtol=1e-2, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_the_networks_mode_and_buffers_do_not_change(training):
    module = network().train(training)
    module[3].eval()  # a part that the user froze
    before = {name: b.clone() for name, b in module.named_buffers()}
    diagnose(module, rows(), VAT(0.5))
    assert module.training is module[1].training is training
    assert module[3].training is False
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers())
    assert all(p.grad is None for p in module.parameters())


def test_other_divergences_and_norms_are_judged_by_what_they_have():
    regression = diagnose(network(), rows(), VAT(0.5, divergence="gaussian"), key=KEY)
    assert {"lds", "kl_maximum", "eigenvalue"} <= set(regression)
    assert not {"flip_rate", "margin"} & set(regression)
    corners = diagnose(network(), rows(), VAT(0.5, norm="linf"), key=KEY)
    assert not {"eigenvalue", "cosine", "curvature"} & set(corners)
    assert (corners["lds"] <= corners["kl_maximum"] * (1 + 1e-9)).all()


def test_a_radius_of_0_is_refused():
    with pytest.raises(ValueError, match="eps must be > 0 to judge r, got 0"):
        diagnose(network(), rows(), VAT(0.0))


# ------------------------------------------------------------------------------------------------------------------ in words


class Noisy(nn.Module):
    """Noise from a generator unknown to torch, in training mode."""

    def __init__(self):
        super().__init__()
        self.network = network()
        self.noise = np.random.default_rng(0)

    def forward(self, x):
        return self.network(x + torch.from_numpy(self.noise.normal(size=x.shape)) * self.training)


def flat():
    module = network()
    nn.init.zeros_(module[-1].weight)
    return module


@pytest.mark.parametrize(
    ("module", "vat", "says"),
    [
        (network(), VAT(0.5), []),
        (network(), VAT(0.3, direction="margin"), []),
        (Noisy(), VAT(0.5), ["KL without any r is"]),
        (flat(), VAT(0.5), ["eps is too small to matter, or the network is flat"]),
        (network(), VAT(1e-4), ["eps is too small to matter"]),
        (network(inputs=200), RandomPerturbation(0.5), ["hardly better than noise"]),
        (network(), VAT(5.0, direction="margin"), ["% of the decisions: eps reaches into other classes"]),
    ],
    ids=["works", "margin works", "noisy", "flat", "tiny eps", "random", "huge eps"],
)
def test_each_fault_is_named_and_nothing_else(module, vat, says):
    x = rows(60, module[0].in_features if isinstance(module, nn.Sequential) else D)
    found = {name: value.mean().item() for name, value in diagnose(module, x, vat, key=KEY).items()}
    sentences = interpretation(found)
    assert len(sentences) == len(says)
    assert all(said in sentence for said, sentence in zip(says, sentences, strict=True))


def test_a_direction_that_misses_most_is_named():
    assert interpretation({"lds": 0.01, "kl_random": 0.001, "kl_maximum": 0.2})[0].startswith("r reaches 0.01 nats but a longer search")
    assert interpretation({"lds": 0.01, "kl_random": 0.001, "kl_ascent": 0.2})
    assert interpretation({"lds": 0.01, "kl_random": 0.001, "kl_ascent": 0.05}) == []


@pytest.mark.parametrize(
    ("direction", "says"),
    [
        ("finite_difference", "Half precision or a tiny xi"),
        (None, "Half precision or a tiny xi"),
        ("random_margin", "eps is so large"),
        ("exact", "eps is so large"),
        ("random", "VAT's control"),
    ],
)
def test_the_cause_depends_on_the_direction_in_use(direction, says):
    (sentence,) = interpretation({"lds": 0.01, "kl_random": 0.009}, direction=direction)
    assert says in sentence
    assert ("finite differences" in sentence.lower()) == (direction in ("finite_difference", None))


def test_a_radius_is_too_large_if_a_random_r_of_its_length_changes_predictions():
    assert interpretation({"lds": 1.6, "kl_random": 0.05, "flip_rate": 0.8}) == []  # measured on digits at twice the second best radius
    (sentence,) = interpretation({"lds": 1.6, "kl_random": 0.2, "flip_rate": 0.2})
    assert sentence.startswith("a random r changes the predictions by 0.2 nats: eps reaches into other classes")
    (sentence,) = interpretation({"flip_rate": 0.8})
    assert sentence.startswith("r flips 80 % of the decisions: eps reaches into other classes")


def test_missing_values_are_not_judged():
    assert interpretation({}) == []


def test_a_single_example_is_diagnosed_under_batch_norm():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    found = diagnose(module, torch.randn(1, 6), VAT(1.0))
    assert all(value.shape == (1,) and value.isfinite() for value in found.values())
    assert all(part.training for part in module.modules())


def test_inputs_of_one_number_each_are_diagnosed():
    found = diagnose(Curve(), torch.tensor([0.3, -0.2, 1.0]), VAT(0.1))
    torch.testing.assert_close(found["cosine"], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found["curvature"], found["eigenvalue"])
    report: dict[str, torch.Tensor] = {}
    VAT(0.1).penalty(Step(Curve(), torch.tensor([0.3, -0.2, 1.0]), report=report))
    assert report["vat/cosine"].item() == pytest.approx(1.0, abs=1e-3)
    assert report["vat/curvature"].item() == pytest.approx(found["eigenvalue"].mean().item(), rel=0.05)


@pytest.mark.parametrize("direction", ["finite_difference", "ascent", "exact", "margin", "random_margin", None])
def test_a_radius_that_is_too_large_is_named_as_the_cause_with_every_direction(direction):
    # Measured at the end of short runs on digits with 16 times the default radius, by random margins and by finite differences.
    for values in ({"lds": 1.3, "kl_random": 1.4, "kl_ascent": 2.4}, {"lds": 0.77, "kl_random": 1.5, "kl_ascent": 2.2}):
        said = " ".join(interpretation(values, direction=direction))
        assert "eps is so large" in said
        assert "Half precision" not in said
    assert not interpretation({"lds": 0.2, "kl_random": 0.005, "kl_ascent": 0.37, "flip_rate": 0.17}, direction=direction)  # default eps
