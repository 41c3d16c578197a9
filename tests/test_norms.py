import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from vat.functional import by_name
from vat.norms import L2, NORMS, LInf

float64 = torch.float64


def normals(*shape, dtype=float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


INPUTS = [(4, 5), (4, 3, 5), (4, 2, 3, 5)]


def lengths(name, r):
    """Independent reference: one example at a time, in float64."""
    ord_ = 2 if name == "l2" else math.inf
    return torch.stack([torch.linalg.vector_norm(row.double(), ord_) for row in r])


@pytest.mark.parametrize("shape", INPUTS, ids=str)
@pytest.mark.parametrize("name", ["l2", "linf"])
@settings(max_examples=8)
@given(exponents=st.lists(st.integers(-30, 30), min_size=4, max_size=4))
def test_dual_has_unit_length_at_any_scale_of_each_example(name, shape, exponents):
    scales = torch.tensor([10.0**e for e in exponents]).view(-1, *[1] * (len(shape) - 1))
    g = scales * normals(*shape, dtype=torch.float32)
    d = NORMS[name].dual(g, otherwise=torch.full(shape, math.nan))
    assert d.dtype == torch.float32
    # a sum of 30 squares in float32, rounded a few times
    torch.testing.assert_close(lengths(name, d), torch.ones(4, dtype=float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", INPUTS, ids=str)
@pytest.mark.parametrize("name", ["l2", "linf"])
def test_dual_maximises_the_inner_product_over_the_unit_ball(name, shape):
    g = normals(*shape)
    d = NORMS[name].dual(g, otherwise=torch.zeros(1))
    reached = (g * d).flatten(1).sum(1)
    # Hölder: the maximum is the dual norm of g
    bound = torch.stack([torch.linalg.vector_norm(row, 2 if name == "l2" else 1) for row in g])
    torch.testing.assert_close(reached, bound)
    others = normals(200, *shape, seed=1)
    others = others / torch.stack([lengths(name, other) for other in others]).view(200, -1, *[1] * (len(shape) - 1))
    assert ((others * g).flatten(2).sum(2) <= reached + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_dual_of_half_precision_gradients_has_unit_length(scale, dtype):
    g = (scale * normals(4, 100)).clamp(-6e4, 6e4).to(dtype)
    d = L2().dual(g, otherwise=torch.zeros(1))
    assert d.dtype == dtype
    torch.testing.assert_close(lengths("l2", d), torch.ones(4, dtype=float64), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whole_row", [True, False])
@pytest.mark.parametrize("one_row", [True, False])
@pytest.mark.parametrize("name", ["l2", "linf"])
def test_rows_without_a_usable_gradient_use_the_fallback_and_the_others_do_not_change(name, bad, whole_row, one_row):
    norm = NORMS[name]
    g = normals(4, 3, 2, dtype=torch.float32)
    otherwise = norm.sample(normals(1 if one_row else 4, 3, 2, dtype=torch.float32, seed=1))
    wanted = norm.dual(g, otherwise)
    if whole_row or bad == 0:
        g[1] = bad
    else:
        g[1, 2, 0] = bad
    wanted[1] = otherwise[0 if one_row else 1]
    torch.testing.assert_close(norm.dual(g, otherwise), wanted)


@pytest.mark.parametrize("name", ["l2", "linf"])
def test_gradient_through_dual_is_finite_and_zero_for_zero_rows(name):
    g = normals(3, 4)
    g[1] = 0
    g.requires_grad_()
    d = NORMS[name].dual(g, otherwise=NORMS[name].sample(normals(3, 4, seed=1)))
    (gradient,) = torch.autograd.grad((d * normals(3, 4, seed=2)).sum(), g)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()
    if name == "l2":
        assert (gradient[[0, 2]].abs().amax(1) > 1e-3).all()


def test_gradient_through_the_l2_dual_equals_finite_differences():
    assert gradcheck(lambda g: L2().dual(g, otherwise=torch.zeros(1)), (normals(3, 4).requires_grad_(),))


def test_gradient_through_l2_length_and_projection_equals_finite_differences():
    r = normals(3, 4).requires_grad_()  # some inside the ball of 2, some outside
    length = lengths("l2", r)
    assert length.min() < 2 < length.max()
    assert gradcheck(L2().length, (r,))
    assert gradcheck(lambda r: L2().project(r, 2.0), (r,))


def test_gradient_through_the_projection_of_a_zero_row_is_finite():
    r = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(L2().project(r, 1.0).sum(), r)
    torch.testing.assert_close(gradient, torch.ones(2, 3))


@pytest.mark.parametrize("shape", INPUTS, ids=str)
@pytest.mark.parametrize("name", ["l2", "linf"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_length_is_each_examples_own(name, shape, scale):
    r = scale * normals(*shape, dtype=torch.float32)
    length = NORMS[name].length(r)
    assert length.shape == (4, *[1] * (len(shape) - 1))
    torch.testing.assert_close(length.flatten().double(), lengths(name, r), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", INPUTS, ids=str)
@pytest.mark.parametrize("name", ["l2", "linf"])
def test_projection_gives_the_closest_point_of_the_ball_and_is_idempotent(name, shape):
    norm, eps = NORMS[name], 1.0
    r = normals(*shape)
    r[0] *= 0.1 / lengths(name, r)[0]  # one row inside the ball
    projected = norm.project(r, eps)
    assert (lengths(name, projected) <= eps * (1 + 1e-15)).all()
    torch.testing.assert_close(projected[0], r[0], rtol=0, atol=0)
    torch.testing.assert_close(norm.project(projected, eps), projected, rtol=1e-15, atol=0)
    # closest point of a convex set: the direction back to r makes no acute angle with the direction to any other point
    inside = norm.dual(normals(200, *shape[1:], seed=1), otherwise=torch.zeros(1))
    back = (r - projected)[:, None]
    assert ((back * (inside[None] - projected[:, None])).flatten(2).sum(2) <= 1e-12).all()


@pytest.mark.parametrize("name", ["l2", "linf"])
def test_random_directions_have_unit_length_and_no_preferred_sign(name):
    d = NORMS[name].sample(normals(2000, 3))
    torch.testing.assert_close(lengths(name, d), torch.ones(2000, dtype=float64))
    assert d.mean(0).abs().max() < 0.1  # 5 standard errors of entries of size 1


def test_names_are_looked_up_and_objects_are_returned():
    own = LInf()
    assert by_name("norm", NORMS, own) is own
    assert by_name("norm", NORMS, "l2") is NORMS["l2"]
    with pytest.raises(ValueError, match="unknown norm 'l3': choose one of l2, linf"):
        by_name("norm", NORMS, "l3")
