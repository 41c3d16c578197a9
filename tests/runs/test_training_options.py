"""A VAT step under accumulation, clipping, autocast and torch.compile is the plain step."""

import networks
import pytest
import torch
import torch.nn.functional as F

from vat import VAT
from vat.directions import DIRECTIONS
from vat.lightning.classifier import Classifier
from vat.models import MLP
from vat.runs.compilation import compile_in_place
from vat.step import Key, Step

KEY = Key(1, 2)


def network(dtype=torch.float64):
    return networks.network(6, 16, dtype=dtype)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64).to(dtype), torch.arange(8) % 3


def loss(forward, direction, rows=slice(None), dtype=torch.float64):
    x, y = batch(dtype)
    step = Step(forward, x[rows], key=KEY, start=rows.start or 0, total=8)
    return F.cross_entropy(forward(x[rows]).to(torch.promote_types(dtype, torch.float32)), y[rows]) + VAT(1.0, direction=direction).term(
        step
    )


def gradients(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_micro_batches_accumulate_to_the_whole_batch_and_keep_what_is_there(direction):
    plain, accumulated = network(), network()
    loss(plain, direction).backward()
    for p in accumulated.parameters():
        p.grad = torch.ones_like(p)  # of a micro-batch before
    for rows in (slice(0, 4), slice(4, 8)):
        before = [g.clone() for g in gradients(accumulated)]
        part = loss(accumulated, direction, rows) / 2
        assert all(map(torch.equal, gradients(accumulated), before))  # the search for r does not change them
        part.backward()
    # The step of finite differences is a share of the mean length of the rows, which changes d by as much.
    tolerance = {"rtol": 1e-2, "atol": 1e-4} if direction == "finite_difference" else {"rtol": 1e-9, "atol": 1e-12}
    for found, expected in zip(gradients(accumulated), gradients(plain), strict=True):
        torch.testing.assert_close(found - 1, expected, **tolerance)


def norms(net, reference):
    """Length of the difference of two networks' gradients, and of the reference's."""
    found, expected = (torch.cat([g.double().flatten() for g in gradients(n)]) for n in (net, reference))
    return (found - expected).norm().item(), expected.norm().item()


@pytest.mark.parametrize("direction", ["margin", "random_margin", "exact", "random", "ascent"])
def test_autocast_changes_the_step_by_no_more_than_its_precision(direction):
    plain, low = network(torch.float32), network(torch.float32)
    loss(plain, direction, dtype=torch.float32).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss(low, direction, dtype=torch.float32).backward()
    difference, length = norms(low, plain)
    assert 0 < difference < 0.05 * length  # bfloat16 keeps 8 bits


BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.long)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_compiled_network_gives_the_plain_step(direction, backend):
    torch._dynamo.reset()
    plain, wrapped = network(torch.float32), network(torch.float32)
    loss(plain, direction, dtype=torch.float32).backward()
    loss(torch.compile(wrapped, backend=backend), direction, dtype=torch.float32).backward()
    difference, length = norms(wrapped, plain)
    # Finite differences divide the rounding of one pass by ξ = 1e-3.
    assert difference < (1e-2 if direction == "finite_difference" else 1e-5) * length


def test_clipping_shortens_the_steps_gradient_and_leaves_its_direction(job):
    def first_update(*overrides, name):
        found = {}

        def step(self, *args, **kwargs):
            whole(self, *args, **kwargs)
            found.setdefault("gradient", torch.cat([p.grad.flatten().clone() for p in self.network.parameters()]))

        whole = Classifier.optimizer_step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Classifier, "optimizer_step", step)
            job("trainer.max_steps=2", "test=none", *overrides, name=name)
        return found["gradient"]

    plain, clipped = first_update(name="plain"), first_update("trainer.gradient_clip_val=0.1", name="clipped")
    assert plain.norm() > 0.2
    assert clipped.norm().item() == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(clipped / clipped.norm(), plain / plain.norm(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("wanted", [True, False])
def test_convolutions_are_channels_last_unless_that_is_switched_off(job, monkeypatch, wanted):
    found = []
    whole = Classifier.optimizer_step

    def step(self, *args, **kwargs):
        found.extend(p for p in self.network.parameters() if p.dim() == 4 and p.shape[1] > 1)  # with one channel both are the same
        whole(self, *args, **kwargs)

    monkeypatch.setattr(Classifier, "optimizer_step", step)
    job("trainer.max_steps=1", "test=none", f"channels_last={wanted}")
    assert found
    assert all(p.is_contiguous(memory_format=torch.channels_last) == wanted for p in found)


@pytest.mark.long  # the compiler is slow
def test_a_compiled_run_ends_with_the_weights_of_a_plain_one(job):
    # Everything else that calls the network: batch norm re-estimation, an average of the weights, a live clean pass, figures.
    # A validation within the run: re-estimation keeps some passes from being compiled, and their noise must be that of the others.
    options = ("model=mlp", "model.hidden=[16]", "model.noise=0.3", "regularizer=vat_entropy", "ema=0.5", "reestimate_batch_norm=true")
    options = (*options, "figures=0", "data.steps_per_epoch=2")
    plain, compiled = (job(*options, f"compile={wanted}", name=str(wanted)).checkpoint for wanted in (False, True))
    plain, compiled = (torch.load(path, weights_only=True)["state_dict"] for path in (plain, compiled))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_noise_is_the_same_in_all_passes_of_a_compiled_step():
    network = MLP((6,), 3, hidden=(16,), noise=0.3, dropout=0.2)
    compile_in_place(network)
    x, _ = batch(torch.float32)
    step = Step(network, x, key=KEY, live=True)
    with torch.no_grad():
        constant, other = step.network(x, constant=True), step.network(x, noise="other")
    torch.testing.assert_close(constant, step.clean.logits.detach())
    assert (other - constant).norm() > 0.1 * constant.norm()


def test_without_a_compiler_compilation_is_refused_in_a_line(job, monkeypatch):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ValueError, match=r"compile=true needs a C\+\+ compiler, but none is found\. Install g\+\+"):
        job("compile=true")


def test_what_cannot_be_compiled_is_refused_before_the_run(job):
    with pytest.raises(ValueError, match=r"compile=true cannot differentiate twice"):
        job("compile=true", "vat.gradient_through_r=true")


def test_clipping_that_lightning_cannot_do_is_refused_before_the_run(job):
    clipped = ("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0")
    with pytest.raises(ValueError, match=r"optimizer\.fused=false"):
        job(*clipped)
    job(*clipped, "optimizer.fused=false", "trainer.max_steps=1", "test=none")
