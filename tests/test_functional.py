import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.functional import hessian
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Independent, Normal, kl_divergence

from vat.functional import (
    DIVERGENCES,
    Bernoulli,
    Categorical,
    Divergence,
    Gaussian,
    GaussianWithVariance,
    cross_entropy,
    entropy,
    probabilities,
)

float64 = torch.float64


def pair(*shape, scale=2.0, dtype=float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(2, *shape, generator=generator, dtype=float64)).to(dtype).unbind(0)


def normals(*shape, dtype=float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(name, clean, perturbed):
    """Independent reference: torch.distributions, one example at a time."""
    values = []
    for a, b in zip(clean, perturbed, strict=True):
        if name == "categorical" and (a.dim() == 0 or len(a) == 1):
            p, q = BernoulliDistribution(logits=a), BernoulliDistribution(logits=b)
            values.append(kl_divergence(p, q).mean())
        elif name == "categorical":  # classes last, as torch.distributions wants them
            p, q = CategoricalDistribution(logits=a.movedim(0, -1)), CategoricalDistribution(logits=b.movedim(0, -1))
            values.append(kl_divergence(p, q).mean())
        elif name == "bernoulli":
            value = kl_divergence(BernoulliDistribution(logits=a), BernoulliDistribution(logits=b))
            values.append((value.sum(0) if value.dim() else value).mean())
        elif name == "gaussian with variance":
            (mean, variance), (other, others_variance) = ((z.chunk(2)[0], z.chunk(2)[1].exp()) for z in (a, b))
            values.append(kl_divergence(Normal(mean, variance.sqrt()), Normal(other, others_variance.sqrt())).sum())
        else:
            value = kl_divergence(Normal(a, 0.7), Normal(b, 0.7))
            values.append(value.sum())
    return torch.stack(values)


SHAPES = {
    "categorical": [(5, 4), (5, 2), (5, 1), (5,), (3, 4, 6), (3, 4, 2, 3), (3, 1, 2, 3)],
    "bernoulli": [(5, 4), (5, 1), (5,), (3, 4, 2, 3)],
    "gaussian": [(5, 4), (5, 1), (5,), (3, 4, 2, 3)],
    "gaussian with variance": [(5, 4), (5, 2), (3, 4, 2, 3)],
}
CASES = [pytest.param(name, shape, id=f"{name}-{shape}") for name, shapes in SHAPES.items() for shape in shapes]


def divergence(name):
    others = {"gaussian": Gaussian(sigma=0.7), "gaussian with variance": GaussianWithVariance()}
    return others.get(name) or DIVERGENCES[name]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_divergence_agrees_with_torch_distributions(name, shape):
    clean, perturbed = pair(*shape)
    value = divergence(name)(clean, perturbed)
    assert value.shape == shape[:1]
    torch.testing.assert_close(value, naive(name, clean, perturbed))


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_the_clean_prediction_comes_first_in_the_kl(name):
    # The reference must distinguish the two directions. Otherwise the agreement above would prove nothing.
    clean, perturbed = pair(5, 4)
    forwards, backwards = naive(name, clean, perturbed), naive(name, perturbed, clean)
    assert (forwards - backwards).abs().min() > 1e-2
    torch.testing.assert_close(divergence(name)(clean, perturbed), forwards)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_divergence_of_equal_logits_is_exactly_zero(name, shape, dtype):
    logits, _ = pair(*shape, scale=5.0, dtype=dtype)
    assert (divergence(name)(logits, logits.clone()) == 0).all()


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-4])
def test_gradient_of_the_divergence_survives_where_rounding_makes_its_value_negative(name, shape, scale):
    # A KL of 1e-9 is below float32's rounding of its sum, but its gradient q - p is not. Power iteration needs only this gradient.
    clean, step = pair(*shape, scale=1.0, dtype=torch.float32)
    step = scale * step
    gradients = []
    for dtype in (torch.float32, torch.float64):
        perturbed = (clean.to(dtype) + step.to(dtype)).requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(name)(clean.to(dtype), perturbed).sum(), perturbed)
        gradients.append(gradient.double())
    # gradients are of order `scale`; float32 rounds the probabilities whose difference they are
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=3e-6)
    assert (gradients[0].reshape(shape[0], -1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_hessian_vector_product_equals_the_dense_hessian_and_the_one_by_autograd(name, shape):
    logits, v = pair(*shape)
    d = divergence(name)
    H = hessian(lambda perturbed: d(logits, perturbed).sum(), logits).reshape(logits.numel(), logits.numel())
    dense = (H @ v.flatten()).reshape(shape)
    torch.testing.assert_close(d.hvp(logits, v), dense)
    torch.testing.assert_close(Divergence.hvp(d, logits, v), dense)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 5.0])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_gradient_in_the_perturbed_logits_is_that_of_autograd_and_differentiable(name, shape, scale):
    clean, step = pair(*shape)
    perturbed = (clean + scale * step).requires_grad_()
    d = divergence(name)
    (wanted,) = torch.autograd.grad(d(clean, perturbed).sum(), perturbed)
    torch.testing.assert_close(d.gradient(clean, perturbed), wanted, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(Divergence.gradient(d, clean, perturbed.detach()), wanted)
    assert not d.gradient(clean, perturbed.detach()).requires_grad
    assert gradcheck(d.gradient, (clean.requires_grad_(), perturbed))


@pytest.mark.parametrize("logits", [[[25.0, 0.0, 1.0, -1.0]], [[0.0, 25.0, 1.0, -1.0]], [[25.0]], [[-25.0]], [25.0], [-25.0]], ids=str)
@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_gradient_of_a_confident_prediction_is_accurate_in_float32(name, logits):
    # The papers' direction is its finite difference. A difference of probabilities would lose it in rounding.
    clean = torch.tensor(logits)
    d = DIVERGENCES[name]
    for scale in (1e-2, 0.5, 3.0):
        perturbed = clean + scale * normals(*clean.shape, dtype=torch.float32)
        wanted = d.gradient(clean.double(), perturbed.double())
        assert (d.gradient(clean, perturbed).double() - wanted).norm() / wanted.norm() < 1e-3
    if name == "categorical" and clean.dim() == 2 and clean.shape[1] > 1:
        p, q = clean.softmax(1), (clean + 1e-2 * normals(*clean.shape, dtype=torch.float32)).softmax(1)
        exact = d.gradient(clean.double(), clean.double() + 1e-2 * normals(*clean.shape, dtype=torch.float32).double())
        assert ((q - p).double() - exact).norm() / exact.norm() > 1e-2  # the plain difference is not accurate enough


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_hessian_vector_product_is_differentiable_in_logits_and_vector(name, shape):
    logits, v = pair(*shape)
    d = divergence(name)
    assert gradcheck(d.hvp, (logits.requires_grad_(), v.requires_grad_()))


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param([[8.0, -1.0, 0.0]], id="confident"),
        pytest.param([[25.0, 0.0, 1.0, -1.0]], id="very confident"),
        pytest.param([[0.0, 25.0, 1.0, -1.0]], id="very confident of another class"),
        pytest.param([[25.0]], id="single logit, yes"),
        pytest.param([[-25.0]], id="single logit, no"),
        pytest.param([25.0], id="single logit without a dimension"),
    ],
)
def test_curvature_of_a_confident_softmax_is_accurate_in_float32(logits):
    # Every entry is tiny, but the direction is normalised afterwards, so the relative error counts.
    logits = torch.tensor(logits)
    v = normals(*logits.shape, dtype=torch.float32)
    wanted = Categorical().hvp(logits.double(), v.double())
    error = (Categorical().hvp(logits, v).double() - wanted).norm() / wanted.norm()
    assert error < 1e-4


def test_a_users_own_divergence_needs_only_its_value():
    class Brier(Divergence):
        def __call__(self, clean, perturbed):
            return (clean.softmax(1) - perturbed.softmax(1)).square().sum(1)

    logits, v = pair(3, 4)
    J = torch.stack([torch.autograd.functional.jacobian(lambda z: z.softmax(0), row) for row in logits])
    closed_form = 2 * torch.einsum("nij,nik,nk->nj", J, J, v)
    torch.testing.assert_close(Brier().hvp(logits, v), closed_form)
    with pytest.raises(NotImplementedError, match="Brier"):
        Brier().margin(logits)


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
@pytest.mark.parametrize("shape", [(2, 4), (2, 1), (2,)])
@pytest.mark.parametrize("magnitude", [50.0, 1e4, 1e30])
def test_saturated_logits_give_finite_values_gradients_and_curvature(name, shape, magnitude):
    signs = torch.ones(shape)
    signs[0] = -1
    if len(shape) == 2:
        signs[:, 0] *= -1
    for opposite in (1, -1):
        clean, perturbed = magnitude * signs, (opposite * magnitude * signs).requires_grad_()
        value = DIVERGENCES[name](clean, perturbed)
        (gradient,) = torch.autograd.grad(value.sum(), perturbed)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert DIVERGENCES[name].hvp(clean, torch.ones(shape)).isfinite().all()
        torch.testing.assert_close(DIVERGENCES[name].gradient(clean, perturbed.detach()), gradient)
    assert value.max() > 1  # the last pair are opposites


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
def test_half_precision_logits_are_evaluated_in_float32(name, dtype):
    clean, perturbed = pair(5, 4, scale=0.1, dtype=dtype)
    d = divergence(name)
    for value, wide in (
        (d(clean, perturbed), d(clean.float(), perturbed.float())),
        (d.hvp(clean, perturbed), d.hvp(clean.float(), perturbed.float())),
        (d.gradient(clean, perturbed), d.gradient(clean.float(), perturbed.float())),
        (entropy(clean), entropy(clean.float())),
        (probabilities(clean), probabilities(clean.float())),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, wide)


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
def test_divergence_of_an_empty_batch_is_empty(name):
    empty = torch.zeros(0, 3)
    assert divergence(name)(empty, empty).shape == (0,)
    assert divergence(name).hvp(empty, empty).shape == (0, 3)
    assert divergence(name).gradient(empty, empty).shape == (0, 3)


def test_margin_is_the_gap_between_the_two_largest_logits():
    logits = torch.tensor([[1.0, 4.0, 2.5], [0.0, -1.0, -7.0]])
    torch.testing.assert_close(Categorical().margin(logits), torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(Categorical().margin(torch.tensor([[-3.0], [2.0]])), torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(Categorical().margin(torch.tensor([-3.0, 2.0])), torch.tensor([3.0, 2.0]))
    positions = torch.stack([logits, torch.zeros(2, 3)], dim=2)
    torch.testing.assert_close(Categorical().margin(positions), torch.tensor([0.75, 0.5]))


def test_margin_of_labels_is_the_one_closest_to_its_threshold():
    torch.testing.assert_close(Bernoulli().margin(torch.tensor([[1.0, -0.25, 3.0]])), torch.tensor([0.25]))
    torch.testing.assert_close(Bernoulli().margin(torch.tensor([-0.5])), torch.tensor([0.5]))


@pytest.mark.parametrize("divergence", [Categorical(), Bernoulli()], ids=["categorical", "bernoulli"])
def test_margin_to_a_chosen_decision_reaches_each_other_one_alike(divergence):
    logits = torch.tensor([[1.0, 4.0, 2.5, -3.0, 0.25]]).expand(10_000, 5)
    choice = torch.linspace(0, 1, 10_001)[:-1]
    choice[-1] = 1 - 2**-24  # the largest possible draw below 1
    found, counts = divergence.margin(logits, choice).unique(return_counts=True)
    others = [4.0 - other for other in (1.0, 2.5, -3.0, 0.25)] if isinstance(divergence, Categorical) else [1.0, 4.0, 2.5, 3.0, 0.25]
    torch.testing.assert_close(found, torch.tensor(sorted(others)))
    assert counts.tolist() == pytest.approx([10_000 / len(others)] * len(others), abs=1)


def test_margin_of_two_classes_leaves_no_choice():
    logits, choice = torch.tensor([[-3.0], [2.0]]), torch.tensor([0.0, 0.99])
    torch.testing.assert_close(Categorical().margin(logits, choice), torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(Bernoulli().margin(torch.tensor([-0.5]), choice[:1]), torch.tensor([0.5]))


def test_margin_to_a_chosen_class_is_that_of_each_position():
    logits = torch.stack([torch.tensor([[1.0, 4.0, 2.5]]), torch.tensor([[6.0, 1.0, 2.0]])], dim=2)
    # the class after the first, cyclically: 2.5 behind 4, and 1 behind 6
    torch.testing.assert_close(Categorical().margin(logits, torch.tensor([0.1])), torch.tensor([(1.5 + 5.0) / 2]))


def test_cross_entropy_entropy_and_probabilities_agree_with_torch_distributions():
    for shape in ((5, 4), (3, 4, 2, 3)):
        logits, _ = pair(*shape)
        p = CategoricalDistribution(logits=logits.movedim(1, -1))
        y = torch.randint(4, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(cross_entropy(logits, y), -p.log_prob(y).mean())
        torch.testing.assert_close(entropy(logits), p.entropy().flatten(1).mean(1) if len(shape) > 2 else p.entropy())
        torch.testing.assert_close(probabilities(logits), p.probs.movedim(-1, 1))
    for shape in ((5, 1), (5,)):
        logits, _ = pair(*shape)
        p = BernoulliDistribution(logits=logits.flatten())
        y = torch.tensor([0, 1, 1, 0, 1])
        torch.testing.assert_close(cross_entropy(logits, y), -p.log_prob(y.double()).mean())
        torch.testing.assert_close(entropy(logits), p.entropy())
        torch.testing.assert_close(probabilities(logits)[:, 1], p.probs)


def test_a_class_that_is_ruled_out_has_no_entropy():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    torch.testing.assert_close(entropy(logits), entropy(logits[:, :2]))
    entropy(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("clean", "perturbed"), [(18.0, 1000.0), (-18.0, -1000.0), (17.0, 40.0), (40.0, 17.0)])
def test_confident_yes_or_no_outputs_are_accurate_in_float32(clean, perturbed):
    a, b = torch.tensor([[clean]]), torch.tensor([[perturbed]], requires_grad=True)
    z = torch.tensor([[perturbed]], dtype=torch.float64, requires_grad=True)
    value, reference = Bernoulli()(a, b), Bernoulli()(a.double(), z)
    torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=1e-12)
    (g,), (expected,) = torch.autograd.grad(value.sum(), b), torch.autograd.grad(reference.sum(), z)
    torch.testing.assert_close(g.double(), expected, rtol=1e-4, atol=1e-12)


def test_an_infinite_divergence_is_infinite():
    assert Categorical()(torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])).item() == torch.inf


@pytest.mark.parametrize("out", [-torch.inf, torch.inf])
def test_an_output_that_is_ruled_out_on_both_sides_costs_nothing(out):
    clean, perturbed = torch.tensor([[0.5, out]]), torch.tensor([[1.5, out]], requires_grad=True)
    alone = torch.tensor([[1.5]], requires_grad=True)
    value, expected = Bernoulli()(clean, perturbed), Bernoulli()(torch.tensor([[0.5]]), alone)
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(expected.sum(), alone)
    for g in (torch.autograd.grad(value.sum(), perturbed)[0], Bernoulli().gradient(clean, perturbed)):
        torch.testing.assert_close(g[:, :1], slope)
        assert g[0, 1] == 0


def test_positions_without_a_label_do_not_count_in_the_cross_entropy():
    logits, y = torch.randn(6, 5), torch.tensor([1, 2, -100, -100, -100, -100])
    torch.testing.assert_close(cross_entropy(logits, y), torch.nn.functional.cross_entropy(logits, y))
    assert cross_entropy(logits, torch.full((6,), -100)) == 0


def test_soft_labels_are_refused():
    with pytest.raises(TypeError, match="class indices"):
        cross_entropy(torch.randn(6, 5), torch.rand(6, 5))


def test_gaussian_divergence_is_the_kl_of_isotropic_normals():
    clean, perturbed = pair(5, 2, 3)
    p, q = (Independent(Normal(mean, 1.3), 2) for mean in (clean, perturbed))
    torch.testing.assert_close(Gaussian(sigma=1.3)(clean, perturbed), kl_divergence(p, q))


def test_a_bernoulli_margin_is_the_mean_over_positions_of_the_nearest_or_the_chosen_output():
    logits = torch.tensor([[[1.0, -5.0], [-0.5, 2.0]]])  # one example, two outputs, two positions
    torch.testing.assert_close(DIVERGENCES["bernoulli"].margin(logits), torch.tensor([(0.5 + 2.0) / 2]))
    torch.testing.assert_close(DIVERGENCES["bernoulli"].margin(logits, torch.tensor([0.1])), torch.tensor([(1.0 + 5.0) / 2]))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_standard_deviation_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be a finite number > 0"):
        Gaussian(sigma)


@pytest.mark.parametrize("log_variance", [-200.0, 0.0, 200.0])
def test_predicted_variances_out_of_range_give_finite_values_and_gradients(log_variance):
    clean = torch.tensor([[1.0, log_variance]])
    perturbed = (clean + torch.tensor([[0.0, 1e-3]])).requires_grad_()
    d = GaussianWithVariance()
    (gradient,) = torch.autograd.grad(d(clean, perturbed).sum(), perturbed)
    for value in (d(clean, perturbed), gradient, d.gradient(clean, perturbed), d.hvp(clean, torch.ones(1, 2))):
        assert value.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3), (4,)])
def test_outputs_without_a_variance_for_each_mean_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(N, 2K, …\) for GaussianWithVariance"):
        GaussianWithVariance()(torch.zeros(shape), torch.zeros(shape))
