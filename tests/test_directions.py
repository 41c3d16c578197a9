import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn.functional import cosine_similarity

from vat import VAT
from vat.directions import DIRECTIONS, ascent, exact, finite_difference, gradient, margin, random, random_margin
from vat.functional import DIVERGENCES, Categorical, Divergence
from vat.norms import L2, NORMS
from vat.step import Key, Step

KEY = Key(seed=5)
KL, LENGTH = Categorical(), L2()
EVERY = list(DIRECTIONS)
SEARCHES = [name for name in EVERY if name != "random"]
N, D = 6, 5


def smooth_network(dtype=torch.float64):
    """A network whose batch norm couples the rows and whose dropout draws masks; smooth, so finite differences are exact to order 2."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(D, 12),
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(12, 10),
        nn.Tanh(),
        nn.Dropout(0.5),
    ]
    module = nn.Sequential(*layers, nn.Linear(10, 4)).to(dtype)
    with torch.no_grad():
        module[-1].weight.mul_(3)  # an untrained network is almost linear, and its Hessian almost the same for all rows
    return module


def rows(n=N, *shape, dtype=torch.float64, length=None, seed=1):
    x = torch.randn(n, *(shape or (D,)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if length is not None:
        x = x * (length / x.flatten(1).norm(dim=1)).view(-1, *[1] * (x.dim() - 1))
    return x.to(dtype)


def direction(name, step, *, divergence=KL, norm=LENGTH, eps=0.5, **options):
    if name == "ascent":
        options["eps"] = eps
    return DIRECTIONS[name](step, divergence, norm, **options)


def cosines(a, b):
    return cosine_similarity(a.double().flatten(1), b.double().flatten(1))


def unit(x):
    return torch.stack([row / row.norm() for row in x])


def reference_function(module, key):
    """Function x -> logits: an ordinary call of a copy of the module, with the seed of the step's passes."""
    module = copy.deepcopy(module)
    buffers = {name: b.clone() for name, b in module.named_buffers()}

    def forward(x):
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
        with torch.random.fork_rng():
            torch.manual_seed(key.own("network"))
            return module(x)

    return forward


def dense_hessian(module, x, divergence, key=KEY):
    """Hessian (N D, N D) of the batch's total divergence in all entries of r."""
    forward = reference_function(module, key)
    clean = forward(x).detach()
    return hessian(lambda r: divergence(clean, forward(x + r)).sum(), torch.zeros_like(x)).reshape(x.numel(), x.numel())


# ------------------------------------------------------------------------------------------- fidelity to the dense Hessian


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("find", [exact, finite_difference])
def test_one_iteration_is_the_product_with_the_whole_batchs_dense_hessian(find, training, name):
    module, x = smooth_network().train(training), rows()
    H = dense_hessian(module, x, DIVERGENCES[name])
    step = Step(module, x, key=KEY)
    start = unit(step.normal("direction"))
    options = {"xi": 1e-6} if find is finite_difference else {}
    d = find(step, DIVERGENCES[name], LENGTH, **options)
    wanted = (H @ start.flatten()).reshape(N, D)
    assert cosines(d, wanted).min() > 1 - 1e-8
    assert cosines(start, wanted).max() < 0.99  # the start is not enough

    blocks = torch.einsum("iaib->iab", H.reshape(N, D, N, D))
    coupled = (wanted - torch.einsum("iab,ib->ia", blocks, start)).norm() / wanted.norm()
    assert coupled > 1e-2 if training else coupled < 1e-12  # batch statistics couple the rows


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_exact_product_is_the_same_where_a_layer_has_no_forward_mode(monkeypatch, iterations):
    found = exact(Step(smooth_network(), rows(), key=KEY), KL, LENGTH, num_power_iterations=iterations)
    monkeypatch.setattr("vat.directions.jacobian_vector_product", lambda *_: None)
    expected = exact(Step(smooth_network(), rows(), key=KEY), KL, LENGTH, num_power_iterations=iterations)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("find", [exact, finite_difference])
def test_iteration_in_training_mode_climbs_to_a_stationary_point_of_the_whole_batchs_quadratic_form(find):
    # Each row is normalised separately, so this is not plain power iteration. It climbs dᵀ H d over a product of N spheres (H >= 0, so
    # the linearisation's maximiser never descends). It stops where every block of H d points along that row's d.
    module, x = smooth_network(), rows()
    H = dense_hessian(module, x, KL)
    options = {"xi": 1e-6} if find is finite_difference else {}
    heights = []
    for iterations in (1, 2, 4, 16, 300):
        d = find(Step(module, x, key=KEY), KL, LENGTH, num_power_iterations=iterations, **options)
        heights.append((d.flatten() @ H @ d.flatten()).item())
    # finite differences climb another form, 1e-6 away
    assert all(b > a * (1 - 1e-6) for a, b in pairwise(heights))
    assert heights[0] < 0.99 * heights[-1]
    assert cosines((H @ d.flatten()).reshape(N, D), d).min() > 1 - 1e-6
    assert heights[-1] <= N * torch.linalg.eigvalsh(H)[-1] * (1 + 1e-12)


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("find", [exact, finite_difference])
def test_iteration_in_evaluation_mode_converges_to_each_rows_own_top_eigenvector(find, name):
    module, x = smooth_network().eval(), rows()
    options = {"xi": 1e-6} if find is finite_difference else {}
    d = find(Step(module, x, key=KEY), DIVERGENCES[name], LENGTH, num_power_iterations=100, **options)
    clear = 0
    for i in range(N):
        H = dense_hessian(module, x[i : i + 1], DIVERGENCES[name])
        values, vectors = torch.linalg.eigh(H)
        assert d[i] @ H @ d[i] > values[-1] * (1 - 1e-2)
        if values[-2] < 0.85 * values[-1]:  # 0.85^100 = 1e-7, squared in the cosine
            clear += 1
            assert (d[i] @ vectors[:, -1]).abs() > 1 - 1e-8
    assert clear >= N // 2


def test_the_hessian_tells_tied_masks_from_untied_ones():
    # Otherwise the comparisons above would not test the masks.
    module, x = smooth_network(), rows()
    start = unit(Step(module, x, key=KEY).normal("direction")).flatten()
    ours, others = (dense_hessian(module, x, KL, key) @ start for key in (KEY, Key(6)))
    assert cosines(ours.reshape(N, D), others.reshape(N, D)).min() < 0.9


def test_a_users_own_divergence_works_with_the_exact_product():
    class SquaredHellinger(Divergence):
        def __call__(self, clean, perturbed):
            return (clean.log_softmax(1).div(2).exp() - perturbed.log_softmax(1).div(2).exp()).square().sum(1)

    module, x = smooth_network(), rows()
    step = Step(module, x, key=KEY)
    wanted = dense_hessian(module, x, SquaredHellinger()) @ unit(step.normal("direction")).flatten()
    assert cosines(exact(step, SquaredHellinger(), LENGTH), wanted.reshape(N, D)).min() > 1 - 1e-8


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_margin_points_from_the_top_class_to_the_runner_up(name):
    module, x = smooth_network().eval(), rows()
    d = margin(Step(module, x, key=KEY), DIVERGENCES[name], LENGTH)
    for i in range(N):
        row = x[i : i + 1].clone().requires_grad_()
        logits = module(row)[0]
        if name == "categorical":
            order = logits.argsort(descending=True)
            towards = logits[order[1]] - logits[order[0]]
        else:
            closest = logits.abs().argmin()
            towards = -logits[closest] * logits[closest].sign()
        (gradient,) = torch.autograd.grad(towards, row)
        assert cosines(d[i : i + 1], gradient) > 1 - 1e-12


def test_random_margin_points_from_the_top_class_to_any_other_one():
    """Compare with the gradients of all differences of logits, one row and one class at a time."""
    module, x = smooth_network().eval(), rows(60)
    d = random_margin(Step(module, x, key=KEY), KL, LENGTH)
    ranks = []
    for i in range(len(x)):
        row = x[i : i + 1].clone().requires_grad_()
        logits = module(row)[0]
        order = logits.argsort(descending=True)
        gradients = [torch.autograd.grad(logits[c] - logits[order[0]], row, retain_graph=True)[0] for c in order[1:]]
        agreement = torch.stack([cosines(d[i : i + 1], g)[0] for g in gradients])
        assert agreement.max() > 1 - 1e-12
        ranks.append(int(agreement.argmax()))
    counts = torch.bincount(torch.tensor(ranks), minlength=len(order) - 1)
    assert counts.min() > 60 / (len(order) - 1) / 3
    other = random_margin(Step(module, x, key=Key(1, micro_step=1)), KL, LENGTH)
    assert not torch.equal(d, other)


def test_margin_lowers_the_gap_between_top_class_and_runner_up():
    module, x = smooth_network(), rows()
    forward = reference_function(module, KEY)
    d = margin(Step(module, x, key=KEY), KL, LENGTH)
    # the sum over the batch: under batch norm a single row's gap may rise because of the other rows
    assert KL.margin(forward(x + 1e-3 * d)).sum() < KL.margin(forward(x)).sum()


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_ascent_reaches_a_greater_divergence_than_its_random_start(norm, steps):
    module, x, eps = smooth_network().eval(), rows(200), 0.5
    step = Step(module, x, key=KEY)
    start, d = (
        random(step, KL, NORMS[norm]),
        ascent(step, KL, NORMS[norm], eps=eps, num_power_iterations=steps),
    )
    before, after = (KL(module(x), module(x + eps * r)) for r in (start, d))
    assert (after >= before).float().mean() > 0.9  # a random corner in five dimensions is sometimes the best one
    assert after.mean() > 1.5 * before.mean()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_ascent_that_moves_into_the_ball_still_ends_on_its_surface(norm):
    class LeastAtTheSurface(Divergence):
        def __call__(self, clean, perturbed):
            return -(clean - perturbed).square().sum(1)

    step = Step(nn.Linear(D, D).double(), rows(), key=KEY)
    d = ascent(step, LeastAtTheSurface(), NORMS[norm], eps=0.5, num_power_iterations=10)
    torch.testing.assert_close(NORMS[norm].length(d), torch.ones(N, 1, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------- precision


def network(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 10),
    )


def in_precision(name, module, x, dtype, autocast=False):
    """The direction with module and inputs in `dtype`, from the same random draw for every dtype."""
    step = Step(copy.deepcopy(module).to(dtype), x.to(dtype), key=KEY)
    draws = {one_row: rows(1 if one_row else len(x), *x.shape[1:], seed=2).to(dtype) for one_row in (False, True)}
    step.normal = lambda purpose, *, one_row=False: draws[one_row]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return direction(name, step, eps=0.05 * LENGTH.length(x).mean().item())


@pytest.mark.parametrize("length", [0.1, 1, 10, 100])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("name", EVERY)
def test_direction_in_float32_is_the_one_in_float64_whatever_the_inputs_scale(name, kind, training, length):
    module, x = network(kind).train(training), rows(32, 1, 8, 8, length=length, dtype=torch.float32)
    agreement = cosines(in_precision(name, module, x, torch.float32), in_precision(name, module, x, torch.float64))
    # Finite differences of the smallest inputs are the hardest: biases outweigh them, so a probe of 1e-3 of their length hardly
    # changes the logits. The reference requires 0.98 of a good xi.
    assert agreement.mean() > (0.98 if name == "finite_difference" and length < 1 else 0.99)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("name", ["exact", "margin", "random_margin"])
def test_exact_and_margins_are_accurate_under_bfloat16_autocast(name, kind, training):
    module, x = network(kind).train(training), rows(32, 1, 8, 8, dtype=torch.float32)
    low = in_precision(name, module, x, torch.float32, autocast=True)
    assert low.dtype == torch.float32
    agreement = cosines(low, in_precision(name, module, x, torch.float64))
    # after rounding, margin's runner-up may be another class, so a few rows have another direction
    assert agreement.median() > 0.95
    assert agreement.mean() > 0.9


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("sign", [1, -1], ids=["yes", "no"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_direction_of_a_confident_network_is_not_lost_in_rounding(name, outputs, sign):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, outputs))
    with torch.no_grad():
        module[2].bias[-1] += sign * 22  # p = 3e-10, far above what float32 can hold, but 1 - p is 1
    x = rows(16, dtype=torch.float32)
    agreement = cosines(in_precision(name, module, x, torch.float32), in_precision(name, module, x, torch.float64))
    # logits of 22 have six digits after the point, and finite differences subtract two such logits
    assert agreement.min() > (0.99 if name == "finite_difference" else 0.999)


# ---------------------------------------------------------------------------------------------------- what every one promises

SHAPES = [(D,), (2, 3), (2, 3, 4)]


def flat_network(shape, outputs=4, dtype=torch.float32):
    torch.manual_seed(0)
    size = torch.Size(shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "iterations"),
    [*((name, 1) for name in EVERY), *((name, 3) for name in ("finite_difference", "exact", "ascent"))],
)
def test_every_direction_has_unit_length_for_each_example(name, iterations, shape, norm, outputs):
    options = {} if iterations == 1 else {"num_power_iterations": iterations}
    x = rows(N, *shape, dtype=torch.float32)
    d = direction(name, Step(flat_network(shape, outputs), x, key=KEY), norm=NORMS[norm], **options)
    assert d.shape == x.shape
    assert not d.requires_grad
    ord_ = 2 if norm == "l2" else float("inf")
    wanted = torch.ones(N)
    torch.testing.assert_close(torch.stack([torch.linalg.vector_norm(row, ord_) for row in d]), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", EVERY)
def test_a_network_without_gradient_gets_a_random_unit_direction(name, norm):
    module = flat_network((40,))
    nn.init.zeros_(module[-1].weight)
    x = rows(N, 40, dtype=torch.float32)
    d, again, other = (direction(name, Step(module, x, key=key), norm=NORMS[norm]) for key in (KEY, KEY, Key(6)))
    torch.testing.assert_close(NORMS[norm].length(d), torch.ones(N, 1))
    assert torch.equal(d, again)
    assert not torch.equal(d, other)
    assert (d != d[:, :1]).any(1).all()  # not a constant vector


@pytest.mark.parametrize("name", EVERY)
def test_only_the_rows_without_gradient_fall_back(name):
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = smooth_network().eval()

        def forward(self, x):
            return self.network(x) * (torch.arange(len(x)) != 2)[:, None]

    d, alive = (direction(name, Step(module, rows(), key=KEY)) for module in (Dead().network, Dead()))
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(d[others], alive[others])
    torch.testing.assert_close(alive[2].norm(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("divergence", ["categorical", "bernoulli"])
@pytest.mark.parametrize("name", EVERY)
def test_an_empty_batch_has_an_empty_direction(name, divergence):
    step = Step(flat_network((D,)).eval(), torch.zeros(0, D), key=KEY)
    assert direction(name, step, divergence=DIVERGENCES[divergence]).shape == (0, D)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_the_same_key_gives_the_same_direction_and_another_key_another(name, live):
    module = smooth_network()
    d, again, other = (direction(name, Step(module, rows(), key=key, live=live)) for key in (KEY, KEY, Key(6)))
    assert torch.equal(d, again)
    assert not torch.allclose(d, other)


@pytest.mark.parametrize("name", EVERY)
def test_direction_of_a_slice_is_the_slice_of_the_direction_in_evaluation_mode(name):
    module, x = smooth_network().eval(), rows(12)
    x = unit(x)  # the probe of finite differences follows the batch's mean length
    whole = direction(name, Step(module, x, key=KEY))
    for start, stop in ((0, 5), (5, 12)):
        part = Step(module, x[start:stop], key=Key(KEY.seed, rank=start), start=start, total=12)
        assert cosines(direction(name, part), whole[start:stop]).min() > 1 - 1e-9


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_search_leaves_no_gradient_on_parameters_and_has_a_graph_only_with_create_graph(name, live, create_graph):
    module = smooth_network()
    if name == "exact" and create_graph:  # a third derivative, refused in training mode
        module.eval()
    d = direction(name, Step(module, rows(), key=KEY, live=live or create_graph), create_graph=create_graph)
    assert all(p.grad is None for p in module.parameters())
    assert d.requires_grad == (create_graph and name != "random")


@pytest.mark.parametrize("name", EVERY)
def test_a_search_works_under_no_grad(name):
    step, same = (Step(smooth_network(), rows(), key=KEY) for _ in range(2))
    with torch.no_grad():
        d = direction(name, step)
    assert torch.equal(d, direction(name, same))


@pytest.mark.parametrize("name", EVERY)
def test_all_directions_can_share_one_live_step(name):
    step = Step(smooth_network(), rows(), key=KEY, live=True)
    for other in EVERY:
        direction(other, step)
    torch.testing.assert_close(direction(name, step), direction(name, Step(smooth_network(), rows(), key=KEY)))
    step.clean.logits.sum().backward()  # the clean pass's graph still exists


# passes of the network, with the clean one (or the target's)
@pytest.mark.parametrize(
    ("name", "passes"), [("random", 0), ("margin", 1), ("random_margin", 1), ("exact", 2), ("finite_difference", 2), ("ascent", 2)]
)
def test_a_search_costs_no_more_forward_passes_than_documented(name, passes):
    module, calls = smooth_network(), []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    direction(name, Step(module, rows(), key=KEY))
    assert len(calls) == passes


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_probe_of_finite_differences_is_relative_to_the_inputs_scale(scale):
    # a network that divides by the scale has the same direction; an absolute probe would not find it
    module = smooth_network()

    class Rescaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x / scale)

    d = finite_difference(Step(Rescaled(), scale * rows(), key=KEY), KL, LENGTH, xi=0.1)
    torch.testing.assert_close(d, finite_difference(Step(module, rows(), key=KEY), KL, LENGTH, xi=0.1))


@pytest.mark.parametrize("name", SEARCHES)
def test_inputs_that_are_all_zero_still_get_a_direction(name):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 3))
    d = direction(name, Step(module, torch.zeros(N, D), key=KEY))
    torch.testing.assert_close(d.norm(dim=1), torch.ones(N))
    assert not torch.allclose(d, direction("random", Step(module, torch.zeros(N, D), key=KEY)))


def test_finite_differences_say_that_half_precision_makes_them_noise():
    step = Step(smooth_network().float(), rows().float(), key=KEY)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match="noise in half precision: use direction='random_margin', 'margin' or 'exact'"),
    ):
        direction("finite_difference", step)


@pytest.mark.parametrize("name", ["finite_difference", "ascent", "exact", "margin"])
def test_what_computed_the_inputs_gets_its_gradient_through_r_too(name):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    vat = VAT(0.5, direction=name, gradient_through_r=True, gradient_through_target=True)

    def loss(scale):  # like an embedding's
        return vat.term(Step(module, scale * rows(), key=KEY, live=True))

    scale, h = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), 1e-5
    (g,) = torch.autograd.grad(loss(scale), scale)
    by_differences = (loss((scale + h).detach()) - loss((scale - h).detach())) / (2 * h)
    assert g.item() == pytest.approx(by_differences.item(), rel=2e-2)


def test_finite_differences_probe_at_a_thousandth_of_the_mean_length():
    seen = []
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    x = rows()
    direction("finite_difference", Step(module, x, key=KEY))
    lengths = torch.stack([(probed - x).norm(dim=1) for probed in seen]).amax(0)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1e-3 * x.norm(dim=1).mean()))


@pytest.mark.parametrize("lead", [12, 17])
@pytest.mark.parametrize("whole", [True, False], ids=["half", "autocast"])
@pytest.mark.parametrize("name", ["exact", "ascent"])
def test_a_confident_network_in_float16_loses_no_direction(name, whole, lead):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        module[2].bias[0] += lead
    x, draw = rows(16, 40, dtype=torch.float32), rows(16, 40, dtype=torch.float32, seed=2)
    found = []
    for dtype in (torch.float16 if whole else torch.float32, torch.float64):
        step = Step(copy.deepcopy(module).to(dtype), x.to(dtype), key=KEY)
        step.normal = lambda purpose, one_row=False, dtype=dtype: draw.to(dtype)
        with torch.autocast("cpu", torch.float16, enabled=dtype is torch.float32):
            found.append(direction(name, step))
    assert cosines(*found).median() > 0.99


@pytest.mark.parametrize("name", ["exact", "ascent"])
@pytest.mark.parametrize("training", [False, True])
def test_confident_examples_do_not_change_an_uncertain_ones_direction_in_float16(name, training):
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False)).train(training)
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(3, 8) * 1.5)
    x, draw = 0.3 * rows(12, 8, dtype=torch.float32), rows(12, 8, dtype=torch.float32, seed=2)
    x[:, 0] += torch.arange(12)  # the first class leads by 0 to 16 logits
    found = []
    for dtype in (torch.float16, torch.float64):
        step = Step(copy.deepcopy(module).to(dtype), x.to(dtype), key=KEY)
        step.normal = lambda purpose, one_row=False, dtype=dtype: draw.to(dtype)
        found.append(direction(name, step))
    found = cosines(*found)
    if training:  # batch norm couples the rows, so they share one scale
        assert found.median() > 0.99
    else:
        assert found.min() > 0.99


class BatchNormByHand(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()


def test_rows_that_a_users_own_layer_couples_have_one_scale_in_float16():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), BatchNormByHand(), nn.Linear(5, 3))
    with torch.no_grad():
        module[2].weight *= 3
    x, r = rows(8, 6, dtype=torch.float32), 0.1 * rows(8, 6, dtype=torch.float32, seed=2)
    half, whole = (
        gradient(Step(copy.deepcopy(module).to(dtype), x.to(dtype), key=KEY), DIVERGENCES["categorical"], r.to(dtype))
        for dtype in (torch.float16, torch.float32)
    )
    assert cosines(half, whole).min() > 0.99
