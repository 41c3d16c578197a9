"""Attacks compared with exact results: linear models, a line searched point by point, an order of strength."""

import math
from itertools import pairwise

import pytest
import torch
from networks import seeded
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from vat.attacks import (
    APGD,
    FGM,
    PGD,
    AutoAttack,
    RandomNoise,
    Square,
    Threat,
    Transfer,
    logit_difference,
    predictions,
    scaled_difference,
)
from vat.attacks.apgd import _Ascent
from vat.evaluation.robustness import evaluating
from vat.norms import NORMS

WHITE_BOX = [FGM(), PGD(steps=10), APGD(steps=20), APGD(steps=20, loss="dlr"), APGD(steps=20, loss="dlr", targets=2)]
ALL = [*WHITE_BOX, RandomNoise(draws=3), Square(queries=60)]


def named(attack):
    return attack.name


@pytest.fixture(scope="module")
def digits():
    """A small network on real digits in [0, 1], and test images that it classifies correctly."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float().view(-1, 1, 8, 8), torch.from_numpy(labels).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in range(2)]
        for network in networks:
            for _ in range(150):  # by hand: importing torch.optim's machinery takes longer than this
                loss = nn.functional.cross_entropy(network(x[:1000]), y[:1000])
                gradients = torch.autograd.grad(loss, list(network.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                        parameter -= 0.5 * gradient
    network, other = networks
    network.requires_grad_(False)
    other.requires_grad_(False)
    x, y = x[1000:1300], y[1000:1300]
    right = (predictions(network, x) == y) & (predictions(other, x) == y)
    return network, x[right], y[right], other


def standing(attack, network, x, y, threat):
    return predictions(network, attack(network, x, y, threat, seeded())) == y


# ------------------------------------------------------------------------------------------------------- exact references


@pytest.fixture(scope="module")
def linear():
    """A linear model of two classes in float64, its inputs, their classes, and their exact distances to the boundary in each norm."""
    generator = seeded(1)
    weight, bias = torch.randn(12, generator=generator, dtype=torch.float64), 0.3
    x = torch.randn(40, 12, generator=generator, dtype=torch.float64)

    def network(x):
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), x @ weight + bias], 1)

    score = x @ weight + bias
    distance = {"l2": score.abs() / weight.norm(), "linf": score.abs() / weight.abs().sum()}
    return network, x, (score > 0).long(), distance


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("attack", WHITE_BOX, ids=named)
def test_a_linear_model_is_misclassified_exactly_beyond_its_distance(linear, attack, norm):
    network, x, y, distance = linear
    eps = float(distance[norm].median())
    stands = standing(attack, network, x, y, Threat(NORMS[norm], eps))
    nearer, farther = distance[norm] < 0.999 * eps, distance[norm] > 1.000001 * eps
    assert nearer.sum() > 10
    assert farther.sum() > 10
    assert not stands[nearer].any()
    assert stands[farther].all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_square_closes_in_on_a_linear_model(linear, norm):
    network, x, y, distance = linear
    # in L∞ a random search soon has the right signs; in L2 it must also find how to divide the length among the pixels
    eps = float(distance[norm].median())
    stands = standing(Square(queries=500), network, x, y, Threat(NORMS[norm], eps))
    assert not stands[distance[norm] < (0.7 if norm == "l2" else 0.99) * eps].any()
    assert stands[distance[norm] > 1.000001 * eps].all()


@pytest.mark.parametrize(
    "attack", [PGD(steps=20, restarts=3), APGD(steps=30, restarts=9), APGD(steps=30, restarts=9, loss="dlr")], ids=named
)
def test_attacks_find_on_a_line_what_a_grid_finds(attack):
    def network(x):  # the class changes along the line
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), 0.6 + torch.sin(3 * x[:, 0]) * torch.exp(-0.05 * x[:, 0])], 1)

    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    y = predictions(network, x)
    eps = 0.4
    line = x + eps * torch.linspace(-1, 1, 401, dtype=torch.float64)
    falls = (predictions(network, line.reshape(-1, 1)).view(line.shape) != y[:, None]).any(1)
    assert 10 < falls.sum() < 50
    stands = standing(attack, network, x, y, Threat(NORMS["l2"], eps))
    assert stands[~falls].all()
    assert (stands[falls]).sum() <= 1  # one may be very close to the boundary


def test_the_losses_are_what_their_formulas_say():
    logits, y = torch.tensor([[1.0, 4.0, 2.0, -1.0], [3.0, 0.0, 0.5, 2.0]], dtype=torch.float64), torch.tensor([2, 0])
    assert logit_difference(logits, y).tolist() == [2.0, -1.0]
    assert scaled_difference(logits, y).tolist() == pytest.approx([2 / 3, -1 / 2.5])
    assert scaled_difference(1000 * logits, y).tolist() == pytest.approx([2 / 3, -1 / 2.5])
    target = torch.tensor([0, 3])
    assert scaled_difference(logits, y, target).tolist() == pytest.approx([-1 / (4 - 0.0), -1 / (3 - 0.25)])
    assert torch.equal(scaled_difference(logits[:, :2], y % 2), logit_difference(logits[:, :2], y % 2))  # two classes: no scale


# ------------------------------------------------------------------------------------------------------------ strength


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("linf", 0.08)])
def test_stronger_attacks_leave_fewer_robust(digits, norm, eps):
    network, x, y, other = digits
    threat = Threat(NORMS[norm], eps, (0.0, 1.0))
    attacks = {a.name: a for a in (RandomNoise(), FGM(), PGD(steps=20), APGD(steps=50), APGD(steps=50, loss="dlr"), Transfer(other))}
    left = {name: int(standing(attack, network, x, y, threat).sum()) for name, attack in attacks.items()}
    assert left["random"] > 0.95 * len(x)
    assert 0.05 * len(x) < left["pgd"] < left["fgm"] < left["random"]
    assert left["apgd_ce"] <= left["pgd"] + 0.01 * len(x)
    assert left["apgd_dlr"] <= left["pgd"] + 0.03 * len(x)
    assert left["pgd"] < left["transfer"] < left["random"]


def test_square_finds_most_of_what_gradients_find(digits):
    network, x, y, _ = digits
    for norm, eps in (("l2", 0.7), ("linf", 0.1)):
        threat = Threat(NORMS[norm], eps, (0.0, 1.0))
        blind = standing(Square(queries=400), network, x[:60], y[:60], threat)
        seeing = standing(APGD(steps=50), network, x[:60], y[:60], threat)
        assert (~seeing).sum() > 15
        assert (~seeing).sum() >= (~blind).sum() >= (0.6 if norm == "l2" else 0.9) * (~seeing).sum()


def test_more_restarts_and_targets_never_leave_more(digits):
    network, x, y, _ = digits
    threat = Threat(NORMS["linf"], 0.08, (0.0, 1.0))
    for weak, strong in (
        (PGD(steps=5), PGD(steps=5, restarts=4)),
        (APGD(steps=8, loss="dlr", targets=1), APGD(steps=8, loss="dlr", targets=4)),
        (RandomNoise(draws=1), RandomNoise(draws=20)),
    ):
        before, after = (standing(a, network, x[:150], y[:150], threat) for a in (weak, strong))
        assert not (after & ~before).any()  # the same start, then more starts


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_step_size_schedule_follows_its_formula(schedule, linear):
    _, x, _, _ = linear
    seen = []

    def watched(point):
        seen.append(point[0].detach().clone())
        return torch.cat([torch.zeros(len(point), 1, dtype=point.dtype), 1e3 - point.sum(1, keepdim=True)], 1)  # always robust

    attack = PGD(steps=4, step_size=0.2, schedule=schedule)
    attack(watched, x[:1], torch.ones(1, dtype=torch.long), Threat(NORMS["linf"], 1.0), seeded())
    moved = [float((b - a).abs().max()) for a, b in pairwise(seen)]
    share = {"constant": [1, 1, 1, 1], "linear": [1, 0.75, 0.5, 0.25], "cosine": [math.cos(math.pi * t / 8) ** 2 for t in range(4)]}
    assert moved == pytest.approx([0.2 * s for s in share[schedule]], rel=1e-6)


def test_a_certain_prediction_has_a_gradient_to_follow(digits):
    network, x, y, _ = digits
    threat = Threat(NORMS["linf"], 0.08, (0.0, 1.0))
    left = [int(standing(PGD(steps=10), lambda x, s=s: s * network(x), x, y, threat).sum()) for s in (1, 10)]
    # at ten times the logits, most cross entropies are exactly 0 in float32, and no example would be misclassified
    assert left[1] < left[0] + 0.1 * len(x)


# ------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("attack", ALL, ids=named)
def test_every_point_is_in_the_ball_and_the_range(digits, attack, norm):
    network, x, y, _ = digits
    eps = {"l2": 0.6, "linf": 0.1}[norm]
    point = attack(network, x[:60], y[:60], Threat(NORMS[norm], eps, (0.0, 1.0)), seeded())
    length = (point - x[:60]).flatten(1)
    length = length.norm(dim=1) if norm == "l2" else length.abs().amax(1)
    assert float(length.max()) <= eps * (1 + 1e-5)
    assert float(point.min()) >= 0
    assert float(point.max()) <= 1
    fell = predictions(network, point) != y[:60]
    assert fell.any() or attack.name in ("random",)
    assert torch.equal(point[~fell], x[:60][~fell])


@pytest.mark.parametrize("attack", ALL, ids=named)
def test_the_same_generator_finds_the_same_points(digits, attack):
    network, x, y, _ = digits
    threat = Threat(NORMS["l2"], 0.5, (0.0, 1.0))
    one, same = (attack(network, x[:40], y[:40], threat, seeded(3)) for _ in range(2))
    assert torch.equal(one, same)


@pytest.mark.parametrize("attack", [PGD(steps=8), APGD(steps=8), Square(queries=8), RandomNoise(draws=8)], ids=named)
def test_misclassified_examples_are_not_attacked_further(digits, attack):
    network, x, y, _ = digits
    rows = []

    def counted(x):
        rows.append(len(x))
        return network(x)

    wrong = (y + 1) % 10  # misclassified from the start
    attack(counted, x[:50], torch.cat([wrong[:30], y[30:50]]), Threat(NORMS["l2"], 1e-6), seeded())
    assert rows[0] == 50
    assert set(rows[1:]) == {20}
    rows.clear()
    attack(counted, x[:50], wrong[:50], Threat(NORMS["l2"], 1e-6), seeded())
    assert rows == [50]


@pytest.mark.parametrize("attack", [*ALL, Transfer(nn.Identity(), steps=3)], ids=named)
def test_no_gradient_is_no_error(attack):
    def steps(x):
        return (x * 4).round()  # its gradient is zero

    x = torch.rand(6, 5, generator=seeded())
    y = predictions(steps, x)
    point = attack(steps, x, y, Threat(NORMS["linf"], 0.01), seeded())
    assert point.isfinite().all()


def test_a_single_logit_is_two_classes(linear):
    network, x, y, distance = linear
    eps = float(distance["l2"].median())
    stands = standing(APGD(steps=20, loss="dlr"), lambda x: network(x)[:, 1], x, y, Threat(NORMS["l2"], eps))
    assert torch.equal(stands, distance["l2"] > eps) or (stands != (distance["l2"] > eps)).sum() <= 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PGD(steps=0), "steps must be >= 1, got 0"),
        (lambda: PGD(restarts=0), "restarts must be >= 1, got 0"),
        (lambda: PGD(step_size=-1.0), "step_size is a share of eps and must be > 0, got -1.0"),
        (lambda: PGD(schedule="step"), "unknown schedule 'step': choose one of constant, linear, cosine"),
        (lambda: APGD(loss="hinge"), "unknown loss 'hinge': choose one of cross_entropy, dlr"),
        (lambda: APGD(targets=-1), "targets must be >= 0, got -1"),
        (lambda: Square(queries=0), "queries must be >= 1, got 0"),
        (lambda: Square(window=2.0), "window must be > 0 and <= 1, got 2.0"),
        (lambda: RandomNoise(draws=0), "draws must be >= 1, got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_autoattack_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pyautoattack"):
        AutoAttack()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("shape", [(1, 8, 8), (12,)])
def test_autoattack_attacks_few_classes_and_features(norm, classes, shape):
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    x = torch.rand(4, *shape)
    y = predictions(network, x)
    threat = Threat(NORMS[norm], 5.0, (0.0, 1.0))  # beyond the boundary of every linear network
    assert not standing(AutoAttack(), network, x, y, threat).any()


@pytest.mark.long
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("linf", 0.08)])
def test_autoattack_is_hardly_stronger_than_the_projects_own(digits, norm, eps):
    pytest.importorskip("pyautoattack")
    network, x, y, _ = digits
    x, y, threat = x[:200], y[:200], Threat(NORMS[norm], eps, (0.0, 1.0))
    own = torch.ones(len(x), dtype=torch.bool)
    with evaluating(network):
        targeted = APGD(loss="dlr", targets=4, steps=20, restarts=5)
        for attack in (PGD(), APGD(steps=30, restarts=4), APGD(loss="dlr"), targeted, Square()):  # conf/attack/standard.yaml
            own[own.clone()] = standing(attack, network, x[own], y[own], threat)
        theirs = standing(AutoAttack(), network, x, y, threat)
    assert own.sum() - theirs.sum() <= 0.005 * len(x)
    assert theirs.sum() < 0.8 * len(x)


def test_each_restart_begins_elsewhere():
    def hump(x):  # descent from 0 leads away from the only boundary, at -0.6
        p = x[:, 0]
        f = torch.where(p < -0.3, p + 0.6, 1 - 0.2 * p)
        return torch.stack([torch.zeros_like(f), f], 1)

    x, y, threat = torch.zeros(64, 1), torch.ones(64, dtype=torch.long), Threat(NORMS["l2"], 1.0)
    assert standing(PGD(steps=5), hump, x, y, threat).all()
    assert not standing(PGD(steps=5, restarts=12), hump, x, y, threat).any()


def test_targets_are_the_likeliest_other_classes_in_turn():
    aims = []

    def loss(logits, y, target):
        aims.append(target.tolist())
        return scaled_difference(logits, y, target)

    w, x = torch.randn(5, 6, generator=seeded()), torch.randn(3, 6, generator=seeded())
    order = (x @ w.T).argsort(1, descending=True)
    APGD(steps=4, loss=loss, targets=3)(lambda x: x @ w.T, x, order[:, 0], Threat(NORMS["l2"], 1e-6), seeded())
    assert aims[::5] == order[:, 1:4].T.tolist()


@pytest.mark.parametrize(
    ("rises", "checked_loss", "halved", "halves"),
    [(3.0, 2.0, True, True), (4.0, 2.0, False, False), (4.0, 3.0, False, True), (4.0, 3.0, True, False)],
    ids=["too few rises", "enough rises", "stuck", "stuck, halved at the last check"],
)
def test_apgd_halves_its_step_and_returns_to_the_best_point(rises, checked_loss, halved, halves):
    # Croce and Hein, arXiv 2003.01690, conditions 1 and 2, with a share of 0.75 of 5 steps
    one = torch.ones(1, 1)
    state = _Ascent(
        *(one, one, torch.zeros(1), one, 2 * torch.ones(1), 5 * one, 7 * one),
        *(torch.tensor([value]) for value in (3.0, rises, halved, checked_loss)),
    )
    after = state.checked(4)
    found = after.size.item(), after.point.item(), after.gradient.item(), after.rises.item()
    assert found == ((1.0, 5.0, 7.0, 0.0) if halves else (2.0, 1.0, 1.0, 0.0))


def test_apgd_steps_with_momentum():
    # Croce and Hein, arXiv 2003.01690, algorithm 1: z = P(x + η g), then P(x + 0.75 (z − x) + 0.25 (x − the point before))
    eps, asked = 0.5, []
    x, y = torch.randn(1, 6, generator=seeded(), dtype=torch.float64), torch.tensor([0])
    w = torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)

    def network(inputs):
        asked.append(inputs.detach().clone())
        return (inputs @ w.T).sin() + torch.tensor([9.0, 0.0, 0.0])  # class 0 everywhere

    def ball(point):
        return x + (point - x) * min(1.0, eps / (point - x).norm().item())

    def ahead(point):
        (g,) = torch.autograd.grad(cross_entropy(network(point.requires_grad_()), y), point)
        return ball(point.detach() + 2 * eps * g / g.norm())

    APGD(steps=20)(network, x, y, Threat(NORMS["l2"], eps), seeded())
    points = list(asked)
    assert points[1] == pytest.approx(ahead(points[0].clone()))
    for before, here, after in zip(points[:3], points[1:4], points[2:5], strict=True):  # until the first check of the progress
        z = ahead(here.clone())
        assert after == pytest.approx(ball(here + 0.75 * (z - here) + 0.25 * (here - before)))
