import copy
from functools import partial

import numpy as np
import pytest
import torch
from networks import rows
from torch import nn

from vat import VAT, Step, local_distributional_smoothness
from vat.directions import DIRECTIONS, ascent, finite_difference, takes
from vat.evaluation.diagnosis import root_of_hessian
from vat.functional import DIVERGENCES, Categorical, Divergence
from vat.step import Key

KEY = Key(seed=5)
KL = Categorical()
N, D = 6, 5


def smooth_network(norm=None):
    torch.manual_seed(0)
    norm = norm or nn.BatchNorm1d(12)
    module = nn.Sequential(nn.Linear(D, 12), norm, nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 4)).double()
    with torch.no_grad():
        module[-1].weight.mul_(3)
    return module


def instance_norm(features):
    return nn.Sequential(nn.Unflatten(1, (3, features // 3)), nn.InstanceNorm1d(3), nn.Flatten())


def reference(module, x, key=KEY):
    """Logits by an ordinary call of a copy of the module, with the seed of the step's passes."""
    with torch.random.fork_rng():
        torch.manual_seed(key.own("network"))
        return copy.deepcopy(module)(x)


# --------------------------------------------------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("divergence", list(DIVERGENCES))
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_penalty_is_the_mean_divergence_of_the_perturbed_from_the_clean_prediction(direction, divergence):
    if direction in ("margin", "random_margin") and divergence == "gaussian":
        with pytest.raises(ValueError, match="needs outputs with decisions, got divergence Gaussian: choose one of finite_difference"):
            VAT(0.5, direction=direction, divergence=divergence)
        return
    module, vat = smooth_network(), VAT(0.5, direction=direction, divergence=divergence)
    r = vat.virtual_adversarial_perturbation(Step(module, rows(), key=KEY))
    value = DIVERGENCES[divergence](reference(module, rows()), reference(module, rows() + r))
    torch.testing.assert_close(vat.penalty(Step(module, rows(), key=KEY)), value.mean())
    assert value.mean() > 1e-4


@pytest.mark.parametrize(("eps", "choose_sign"), [(1e-3, False), (20.0, True)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", [(D,), (2, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_perturbation_of_each_example_has_length_eps(direction, shape, norm, eps, choose_sign):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    x = rows(N, *shape, dtype=torch.float32)
    module(x)
    r = VAT(eps, direction=direction, norm=norm, choose_sign=choose_sign).virtual_adversarial_perturbation(Step(module, x, key=KEY))
    lengths = torch.stack([torch.linalg.vector_norm(row, 2 if norm == "l2" else float("inf")) for row in r])
    torch.testing.assert_close(lengths, torch.full((N,), eps), rtol=1e-6, atol=0)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_no_radius_means_no_penalty_and_no_gradient_in_training_mode(direction, through):
    # Untied dropout or batch statistics of other rows would make it positive.
    module = smooth_network(nn.GroupNorm(3, 12) if direction == "exact" else None)
    vat = VAT(0.0, direction=direction, gradient_through_r=through, gradient_through_target=through)
    penalty = vat.penalty(Step(module, rows(), key=KEY, live=through))
    assert penalty.item() == 0
    # q - p of two softmaxes that are equal but rounded apart, times activations of order 1
    assert max(g.abs().max().item() for g in torch.autograd.grad(penalty, list(module.parameters()))) < 1e-14


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_constant_logits_give_no_penalty_but_a_finite_gradient(direction):
    module = smooth_network().float()
    nn.init.zeros_(module[-1].weight)
    penalty = VAT(1.0, direction=direction)(module, rows(dtype=torch.float32))
    penalty.backward()
    assert penalty.item() == 0
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_choosing_the_sign_takes_the_better_of_both(direction, training):
    module, x, eps = smooth_network().train(training), rows(40), 1.0
    r = VAT(eps, direction=direction).virtual_adversarial_perturbation(Step(module, x, key=KEY))
    signed = VAT(eps, direction=direction, choose_sign=True).virtual_adversarial_perturbation(Step(module, x, key=KEY))
    clean = reference(module, x)
    # batch statistics depend on all rows, so both candidates are complete batches
    plus, minus = (KL(clean, reference(module, x + sign * r)) for sign in (1, -1))
    for i in range(len(x)):
        torch.testing.assert_close(signed[i], r[i] if plus[i] >= minus[i] else -r[i])
    assert 0 < (plus >= minus).float().mean() < 1 or direction in ("margin", "ascent")
    if not training:
        reached = KL(clean, reference(module, x + signed))
        torch.testing.assert_close(reached, torch.maximum(plus, minus))


def test_a_users_own_divergence_needs_only_its_value():
    class Brier(Divergence):
        def __call__(self, clean, perturbed):
            return (clean.softmax(1) - perturbed.softmax(1)).square().sum(1)

    for direction in ("finite_difference", "exact", "ascent", "random"):
        module = smooth_network()
        penalty = VAT(0.5, direction=direction, divergence=Brier()).penalty(Step(module, rows(), key=KEY))
        penalty.backward()
        assert penalty > 0
        assert all(p.grad.abs().max() > 0 for p in (module[0].weight, module[4].weight))


def test_a_users_own_direction_is_a_function_of_the_same_signature():
    def first_axis(step, divergence, norm, *, create_graph=False):
        return torch.eye(D, dtype=step.x.dtype)[:1].expand_as(step.x)

    r = VAT(0.5, direction=first_axis).virtual_adversarial_perturbation(Step(smooth_network(), rows(), key=KEY))
    assert torch.equal(r, 0.5 * torch.eye(D, dtype=torch.float64)[:1].expand(N, D))


# ----------------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("through_target", [False, True], ids=["target constant", "through target"])
@pytest.mark.parametrize("through_r", [False, True], ids=["r constant", "through r"])
@pytest.mark.parametrize(
    ("direction", "iterations"),
    [("finite_difference", 1), ("finite_difference", 2), ("exact", 1), ("exact", 2), ("margin", 1), ("random_margin", 1), ("ascent", 2)],
)
def test_gradient_is_the_derivative_of_the_penalty_with_r_and_target_frozen_or_not(direction, iterations, through_r, through_target):
    # The exact product with a graph is a third derivative. Torch computes it wrong for batch norm: see the test below.
    module, x = smooth_network(nn.GroupNorm(3, 12) if direction == "exact" else None), rows()
    parameters = list(module.parameters())
    options = {"direction": direction} | ({"num_power_iterations": iterations} if iterations > 1 else {})
    vat = VAT(0.5, gradient_through_r=through_r, gradient_through_target=through_target, **options)
    penalty = vat.penalty(Step(module, x, key=KEY, live=through_r or through_target))
    gradient = torch.autograd.grad(penalty, parameters)

    def r_and_target():
        r = VAT(0.5, **options).virtual_adversarial_perturbation(Step(module, x, key=KEY))
        return r, reference(module, x).detach()

    frozen_r, frozen_target = r_and_target()

    def value_at(shift, way):
        with torch.no_grad():
            for p, v in zip(parameters, way, strict=True):
                p.add_(shift * v)
        r, target = r_and_target()
        r, target = r if through_r else frozen_r, target if through_target else frozen_target
        value = KL(target, reference(module, x + r)).mean().item()
        with torch.no_grad():
            for p, v in zip(parameters, way, strict=True):
                p.sub_(shift * v)
        return value

    assert value_at(0.0, parameters) == pytest.approx(penalty.item(), rel=1e-12)
    generator, h = torch.Generator().manual_seed(2), 1e-6
    for _ in range(3):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = (value_at(h, way) - value_at(-h, way)) / (2 * h)
        wanted = sum((g * v).sum().item() for g, v in zip(gradient, way, strict=True))
        # central differences: h² of truncation, 1e-16 / h of rounding, which the search by finite differences divides by xi
        assert slope == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, instance_norm])
def test_gradient_through_an_exact_r_is_right_or_refused_where_torchs_third_derivative_is_wrong(norm):
    # Without an error: https://github.com/pytorch/pytorch/issues/186256 (batch norm, training) and 175754 (layer norm).
    module, h = smooth_network(norm(12)), 1e-5
    vat = VAT(0.5, direction="exact", gradient_through_r=True)
    try:
        penalty = vat.penalty(Step(module, rows(), key=KEY, live=True))
    except (ValueError, NotImplementedError):
        return
    (gradient,) = torch.autograd.grad(penalty, module[0].weight)
    target, values = reference(module, rows()).detach(), []
    for sign in (1, -1):
        shifted = copy.deepcopy(module)
        with torch.no_grad():
            shifted[0].weight[0, 0] += sign * h
        r = VAT(0.5, direction="exact").virtual_adversarial_perturbation(Step(shifted, rows(), key=KEY))
        values.append(KL(target, reference(shifted, rows() + r)).mean().item())
    assert gradient[0, 0].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("direction", ["finite_difference", "exact", "margin", "random_margin", "ascent"])
def test_the_gradients_through_r_and_target_are_not_negligible(direction):
    # Otherwise the comparison above could not distinguish the options.
    module, found = smooth_network(nn.GroupNorm(3, 12) if direction == "exact" else None), {}
    for options in ((False, False), (True, False), (False, True)):
        vat = VAT(0.5, direction=direction, gradient_through_r=options[0], gradient_through_target=options[1])
        penalty = vat.penalty(Step(module, rows(), key=KEY, live=any(options)))
        found[options] = torch.autograd.grad(penalty, module[0].weight)[0]
    plain = found.pop((False, False))
    assert all((g - plain).norm() > 0.01 * plain.norm() for g in found.values())


# --------------------------------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps_start": -1.0, "eps_steps": 5}, "eps_start must be a finite number >= 0, got -1.0"),
        ({"eps_start": 1.0}, "eps_start=1.0 and eps_steps=0 go together"),
        ({"eps_steps": 5}, "eps_start=None and eps_steps=5 go together"),
        ({"eps_steps": -2}, "eps_steps must be a finite number >= 0, got -2"),
        ({"direction": "newton"}, "unknown direction 'newton': choose one of finite_difference, exact, margin, random_margin, ascent"),
        ({"norm": "l3"}, "unknown norm 'l3': choose one of l2, linf"),
        ({"divergence": "mse"}, "unknown divergence 'mse': choose one of categorical, bernoulli, gaussian"),
        (
            {"num_power_iterations": 2},
            "random_margin takes no num_power_iterations, got 2: .*choose one of finite_difference, exact, ascent",
        ),
        ({"direction": "margin", "num_power_iterations": 2}, "margin takes no num_power_iterations, got 2"),
        ({"direction": "random", "num_power_iterations": 2}, "random takes no num_power_iterations, got 2"),
        ({"direction": "margin", "xi": 0.1}, "margin takes no xi, got 0.1"),
        ({"direction": "random", "xi": 0.1}, "random takes no xi, got 0.1"),
        ({"direction": "exact", "xi": 0.1}, "exact takes no xi, got 0.1"),
        ({"direction": "ascent", "xi": 0.1}, "ascent takes no xi, got 0.1"),
        ({"num_power_iterations": 1}, "random_margin takes no num_power_iterations, got 1"),
        ({"direction": lambda step, divergence, norm, *, create_graph: step.x, "xi": 0.1}, "<lambda> takes no xi, got 0.1"),
        ({"num_power_iterations": 0}, "num_power_iterations must be >= 1, got 0"),
        ({"xi": 0.0}, "xi must be a finite number > 0, got 0.0"),
    ],
)
def test_an_invalid_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        VAT(1.0, **options)


@pytest.mark.parametrize(
    ("divergence", "direction"), [("categorical", "random_margin"), ("bernoulli", "random_margin"), ("gaussian", "finite_difference")]
)
def test_r_goes_towards_a_random_class_by_default_where_there_are_any(divergence, direction):
    penalties = [VAT(0.5, divergence=divergence, **chosen) for chosen in ({}, {"direction": direction})]
    found, wanted = (vat.penalty(Step(smooth_network(), rows(), key=KEY)) for vat in penalties)
    assert found == wanted > 0


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_the_radius_can_follow_a_schedule(direction):
    later = VAT(0.1, direction=direction)
    later.eps = 2.0
    wanted = VAT(2.0, direction=direction).penalty(Step(smooth_network(), rows(), key=KEY))
    torch.testing.assert_close(later.penalty(Step(smooth_network(), rows(), key=KEY)), wanted)


# --------------------------------------------------------------------------------------------------------------- diagnostics


def report_of(module, eps=0.5, **options):
    report = {}
    penalty = VAT(eps, **options).penalty(Step(module, rows(40), key=KEY, report=report))
    return report, penalty


def test_the_report_compares_r_with_chance_and_with_no_r():
    module = smooth_network()
    report, penalty = report_of(module, direction="exact")
    names = ("lds", "kl_random", "kl_at_zero", "kl_ascent", "curvature", "cosine", "flip_rate", "margin")
    assert set(report) == {f"vat/{name}" for name in names}
    assert all(value.shape == () and not value.requires_grad for value in report.values())
    assert report["vat/lds"] == penalty
    assert report["vat/kl_at_zero"] == 0
    assert 0 < report["vat/kl_random"] < report["vat/lds"]
    r = VAT(0.5, direction="exact").virtual_adversarial_perturbation(Step(module, rows(40), key=KEY))
    flipped = reference(module, rows(40)).argmax(1) != reference(module, rows(40) + r).argmax(1)
    assert report["vat/flip_rate"] == flipped.float().mean() > 0
    assert report_of(module, eps=0.0)[0]["vat/flip_rate"] == 0
    assert report["vat/lds"] < report["vat/kl_ascent"]
    assert report["vat/margin"] == pytest.approx(KL.margin(reference(module, rows(40))).mean().item())


def test_report_estimates_the_curvature_along_r_and_its_cosine_to_the_hessians_product():
    module = smooth_network().eval()
    report, _ = report_of(module, direction="exact")
    r = VAT(0.5, direction="exact").virtual_adversarial_perturbation(Step(module, rows(40), key=KEY))
    root = root_of_hessian(Step(module, rows(40), key=KEY, live=True), KL)
    product = (root.mT @ (root @ (r / 0.5)[..., None])).squeeze(-1)
    assert report["vat/curvature"] == pytest.approx((r / 0.5 * product).sum(1).mean().item(), rel=0.02)
    assert report["vat/cosine"] == pytest.approx(torch.cosine_similarity(r, product).mean().item(), rel=0.01)


def test_report_does_not_change_the_penalty_nor_its_gradient():
    found = []
    for report in (None, {}):
        module = smooth_network()
        penalty = VAT(0.5).penalty(Step(module, rows(), key=KEY, report=report))
        found.append((penalty, *torch.autograd.grad(penalty, list(module.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_report_shows_randomness_that_torch_does_not_know_of():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(D, 3).double()
            self.noise = np.random.default_rng(0)

        def forward(self, x):
            return self.linear(x + torch.from_numpy(self.noise.normal(size=x.shape)))

    report, _ = report_of(Noisy())
    assert report["vat/kl_at_zero"] > 1e-3


def test_flip_rate_of_labels_counts_each_yes_or_no():
    # two labels, and the second flips: the order of the classes does not matter
    module = nn.Linear(1, 2, bias=True).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.0], [1.0]]))
        module.bias.copy_(torch.tensor([5.0, 0.0]))
    report = {}
    x = torch.tensor([[0.1], [-0.2]], dtype=torch.float64)
    VAT(1.0, direction="margin", divergence="bernoulli").penalty(Step(module, x, key=KEY, report=report))
    assert report["vat/flip_rate"] > 0


# ------------------------------------------------------------------------------------------------------------- in use


def test_two_lines_in_a_bare_loop_make_a_network_smoother():
    torch.manual_seed(0)
    x, y = torch.randn(64, D), torch.randint(2, (64,))
    measured = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(D, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
        optimizer, vat = torch.optim.Adam(model.parameters(), 1e-2), VAT(eps=0.5, weight=weight, direction="exact")
        losses = []
        for _ in range(40):
            loss = nn.functional.cross_entropy(model(x), y) + vat(model, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
        measured[weight] = local_distributional_smoothness(model.eval(), x, eps=0.5, direction="exact").mean()
    assert measured[1.0] < 0.7 * measured[0.0]


def test_lds_with_0_iterations_is_refused():
    with pytest.raises(ValueError, match="num_power_iterations must be >= 1, got 0"):
        local_distributional_smoothness(smooth_network().eval(), rows(), eps=0.5, num_power_iterations=0)


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_lds_as_a_measure_takes_every_direction_and_keeps_the_network_as_it_was(direction):
    module = smooth_network().eval()
    with torch.no_grad():
        value = local_distributional_smoothness(module, rows(), eps=0.5, direction=direction, key=KEY)
    assert value.shape == (N,)
    assert not value.requires_grad
    assert (value > 0).all()
    r = VAT(0.5, direction="random", choose_sign=True).virtual_adversarial_perturbation(Step(module, rows(), key=KEY))
    at_random = KL(module(rows()), module(rows() + r))
    assert value.mean() > (1.5 if direction != "random" else 0.999) * at_random.mean()


def test_lds_never_exceeds_the_divergence_of_the_best_of_many_perturbations_by_much():
    module = smooth_network().eval()
    angles = torch.linspace(0, 2 * torch.pi, 720, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    plane = nn.Sequential(nn.Linear(2, D, bias=False).double(), module)
    x = rows(N, 2)
    best = torch.stack([KL(plane(x), plane(x + 0.1 * u)) for u in circle]).amax(0)
    value = local_distributional_smoothness(plane, x, eps=0.1, direction="exact", num_power_iterations=30)
    torch.testing.assert_close(value, best, rtol=0.05, atol=0)  # at a small eps the quadratic part dominates


@pytest.mark.parametrize("options", [{}, {"choose_sign": True}, {"direction": "ascent"}, {"direction": "random_margin"}])
def test_the_radius_moves_linearly_and_stays(options):
    vat, module, x = VAT(2.0, eps_start=1.0, eps_steps=4, **options), smooth_network(), rows()
    lengths = []
    for _ in range(6):
        r = vat.virtual_adversarial_perturbation(Step(module, x, key=KEY))
        torch.testing.assert_close(r.norm(dim=1), r.norm(dim=1).mean().expand(len(x)))
        lengths.append(r.norm(dim=1).mean().item())
        vat.on_optimizer_step_end(module)
    assert lengths == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0, 2.0])
    restored = VAT(2.0, eps_start=1.0, eps_steps=4, **options)
    assert restored.current_eps == 1.0
    vat.num_updates = 3
    restored.load_state_dict(vat.state_dict())
    assert restored.current_eps == 1.75


def test_lds_can_be_measured_where_inference_mode_forbids_gradients():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), torch.randn(6, 5)
    expected = local_distributional_smoothness(network, x, eps=0.5, key=Key(5))
    with torch.inference_mode():
        assert torch.equal(local_distributional_smoothness(network, x + 0, eps=0.5, key=Key(5)), expected)


def test_the_random_r_of_the_report_is_another_than_the_direction_random_draws():
    report = {}
    VAT(0.5, direction="random").penalty(Step(smooth_network(), rows(), key=KEY, report=report))
    assert report["vat/kl_random"] != report["vat/lds"]


def test_smoothness_is_monitored_by_five_iterations():
    one, five, default = (
        local_distributional_smoothness(smooth_network(), rows(20), eps=0.5, key=KEY, **options)
        for options in ({"num_power_iterations": 1}, {"num_power_iterations": 5}, {})
    )
    assert torch.equal(default, five)
    assert not torch.allclose(one, five, rtol=1e-3)


def test_a_direction_that_is_a_function_keeps_its_own_settings():
    def found(direction, **options):
        return VAT(1.0, direction=direction, **options).virtual_adversarial_perturbation(Step(module, x, key=KEY))

    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(found(partial(ascent, num_power_iterations=4)), found("ascent", num_power_iterations=4))
    assert torch.equal(found(partial(finite_difference, xi=2.0)), found("finite_difference", xi=2.0))
    assert torch.equal(found(partial(finite_difference, xi=2.0), xi=0.5), found("finite_difference", xi=0.5))

    @takes("eps", "num_power_iterations")
    def asking(step, divergence, norm, *, eps, num_power_iterations=2, create_graph=False):
        return ascent(step, divergence, norm, eps=eps, num_power_iterations=num_power_iterations, create_graph=create_graph)

    assert torch.equal(found(asking), found("ascent", num_power_iterations=2))
    assert torch.equal(found(asking, num_power_iterations=3), found("ascent", num_power_iterations=3))

    def plain(step, divergence, norm, *, create_graph):
        return ascent(step, divergence, norm, eps=1.0, create_graph=create_graph)

    assert torch.equal(found(plain), found("ascent"))


def test_a_second_input_is_not_taken_for_labels():
    x = torch.randn(4, 6)
    with pytest.raises(TypeError, match=r"the third argument of vat must be integer labels .* or in a function, as vat\(lambda x: model"):
        VAT(1.0)(nn.Linear(6, 3), x, x)
