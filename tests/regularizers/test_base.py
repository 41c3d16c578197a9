"""Properties of every regularizer."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from networks import ReassigningCounter
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from vat import VAT, Adversarial, ClassBalance, Entropy, MeanTeacher, PiModel, RandomPerturbation, Regularizer, Step
from vat.directions import DIRECTIONS, takes
from vat.functional import Categorical
from vat.regularizers import PublishedVAT, by_unique_name
from vat.step import Key

KEY = Key(seed=5)
N = 6


class SyncOnTheCPU(nn.SyncBatchNorm):
    """SyncBatchNorm refuses the CPU. This layer updates the buffers in the same way."""

    forward = nn.BatchNorm2d.forward


class Frail(nn.Module):
    """Raises an error in the forward pass with a given number."""

    def __init__(self):
        super().__init__()
        self.watch = SimpleNamespace(passes=0, fails_in=math.inf)  # an object: a plain number would be restored after each pass

    def forward(self, x):
        self.watch.passes += 1
        if self.watch.passes == self.watch.fails_in:
            raise FloatingPointError("on purpose")
        return x


def network():
    """A smooth network with every layer that changes in a forward pass, some of them frozen; random in training mode."""
    torch.manual_seed(0)
    module = nn.Sequential(
        spectral_norm(nn.Conv2d(2, 4, 3)),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        SyncOnTheCPU(4),
        ReassigningCounter(),
        nn.Unflatten(1, (4, 1)),
        nn.BatchNorm3d(4),
        nn.Flatten(),
        spectral_norm(nn.Linear(16, 8)),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Dropout(0.5),
        Frail(),
        nn.Linear(8, 3),
    )
    module[1].eval()
    module[13].bias.requires_grad_(False)
    return module


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 2, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


MAKERS = {
    **{f"VAT {name}": lambda name=name: VAT(0.5, direction=name) for name in DIRECTIONS},
    **{
        f"VAT {name}, all gradients": lambda name=name: VAT(
            # a third derivative, which `exact` refuses to take of batch norm
            0.5,
            direction=name,
            gradient_through_r=name != "exact",
            gradient_through_target=True,
        )
        for name in DIRECTIONS
    },
    "VAT of two iterations and a sign": lambda: VAT(0.5, direction="exact", num_power_iterations=2, choose_sign=True),
    "VAT linf gaussian": lambda: VAT(0.5, norm="linf", divergence="gaussian"),
    "RandomPerturbation": lambda: RandomPerturbation(0.5),
    "Adversarial": lambda: Adversarial(0.5),
    "Entropy": Entropy,
    "PiModel": PiModel,
    "MeanTeacher": MeanTeacher,
}


def make(name, module):
    regularizer = MAKERS[name]()
    regularizer.on_fit_start(module)
    return regularizer


def step_of(regularizer, module, key=KEY):
    x, y = batch()
    return Step(module, x, y, key=key, live=regularizer.differentiates_clean_pass)


def snapshot(module):
    return {
        "state": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "modes": [m.training for m in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "parameters": [id(p) for p in module.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
    }


def assert_untouched(module, before):
    after = snapshot(module)
    state, earlier = after.pop("state"), dict(before).pop("state")
    assert [name for name in earlier if not torch.equal(state[name], earlier[name])] == []
    assert after == {name: value for name, value in before.items() if name != "state"}


def trainable(module):
    return [p for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", MAKERS)
def test_a_penalty_and_its_backward_pass_leave_the_network_as_it_was(name):
    module = network()
    before = snapshot(module)
    regularizer = make(name, module)
    regularizer.penalty(step_of(regularizer, module)).backward()
    assert_untouched(module, before)
    module(batch()[0])  # the snapshot detects the changes of an ordinary pass
    moved = [n for n, b in module.named_buffers() if not torch.equal(b, before["state"][n])]
    assert len(moved) == 3 * 3 + 1 + 4  # three batch norms in training mode, the counter, two spectral norms' u and v


@pytest.mark.parametrize("name", MAKERS)
def test_the_backward_pass_adds_to_existing_gradients(name):
    module = network()
    regularizer = make(name, module)
    wanted = torch.autograd.grad(regularizer.penalty(step_of(regularizer, module)), trainable(module), allow_unused=True)
    assert sum(g is not None and g.abs().max().item() > 0 for g in wanted) >= len(wanted) - 3
    there = [torch.randn_like(p) for p in trainable(module)]
    for p, g in zip(trainable(module), there, strict=True):
        p.grad = g.clone()
    penalty = regularizer.penalty(step_of(regularizer, module))
    assert all(torch.equal(p.grad, g) for p, g in zip(trainable(module), there, strict=True))
    penalty.backward()
    for p, g, more in zip(trainable(module), there, wanted, strict=True):
        torch.testing.assert_close(p.grad, g if more is None else g + more)
    assert module[13].bias.grad is None


@pytest.mark.parametrize("name", MAKERS)
def test_the_network_does_not_change_wherever_it_raises(name):
    module = network()
    regularizer = make(name, module)
    regularizer.penalty(step_of(regularizer, module))
    passes = module[12].watch.passes
    assert passes >= (1 if name == "Entropy" else 2)
    there = [torch.randn_like(p) for p in trainable(module)]
    for p, g in zip(trainable(module), there, strict=True):
        p.grad = g.clone()
    before = snapshot(module)
    torch.manual_seed(0)
    rng = torch.get_rng_state()
    for number in range(1, passes + 1):  # the clean pass, the direction's, the adversarial one
        module[12].watch = SimpleNamespace(passes=0, fails_in=number)
        with pytest.raises(FloatingPointError, match="on purpose"):
            regularizer.penalty(step_of(regularizer, module))
        assert_untouched(module, before)
        assert all(torch.equal(p.grad, g) for p, g in zip(trainable(module), there, strict=True))
        assert torch.equal(torch.get_rng_state(), rng)
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", MAKERS)
def test_a_bare_loop_draws_only_its_key_from_torchs_generator(name):
    module = network()
    regularizer = make(name, module)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    regularizer.penalty(step_of(regularizer, module))
    assert torch.equal(torch.get_rng_state(), before)
    regularizer(module, *batch())
    after = torch.get_rng_state()
    torch.manual_seed(0)
    Key.fresh()
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("name", MAKERS)
def test_a_bare_function_with_its_module_gives_what_the_module_gives(name):
    module = network()
    before = snapshot(module)
    regularizer = make(name, module)
    torch.manual_seed(0)
    wanted = regularizer(module, *batch())
    torch.manual_seed(0)
    got = regularizer(lambda x: module(x), *batch(), module=module)
    assert torch.equal(got, wanted)
    got.backward()
    assert_untouched(module, before)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "MeanTeacher"])
def test_a_bare_function_alone_works_on_a_network_without_state(name):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3))
    regularizer = make(name, module)
    values = []
    for forward, named in ((module, None), (lambda x: module(x), ())):
        torch.manual_seed(0)
        value = regularizer(forward, *batch(), module=named)
        values.append((value, *torch.autograd.grad(value, trainable(module))))
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("name", MAKERS)
def test_the_penalty_of_an_empty_batch_is_zero_and_can_be_differentiated(name):
    module = network().eval()
    regularizer = make(name, module)
    x, y = batch()
    penalty = regularizer.penalty(Step(module, x[:0], y[:0], key=KEY, live=regularizer.differentiates_clean_pass))
    assert penalty.item() == 0
    penalty.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in trainable(module))


def searched_for_nothing(name):
    """Run the named search with all its passes, but replace its result, so that r is the same in bfloat16."""

    @takes("eps")
    def direction(step, divergence, norm, *, eps, create_graph=False):
        options = {"eps": eps} if name == "ascent" else {}
        found = DIRECTIONS[name](step, divergence, norm, create_graph=create_graph, **options)
        assert found.isfinite().all()
        return DIRECTIONS["random"](step, divergence, norm)

    return direction


AUTOCAST = {
    **{f"VAT {name}": lambda name=name: VAT(2.0, direction=searched_for_nothing(name)) for name in DIRECTIONS},
    **{
        f"VAT {name}, with a sign and gradients": lambda name=name: VAT(
            2.0,
            direction=searched_for_nothing(name),
            choose_sign=True,
            gradient_through_r=True,
            gradient_through_target=True,
        )
        for name in DIRECTIONS
    },
    **{name: MAKERS[name] for name in ("Adversarial", "Entropy", "PiModel", "MeanTeacher")},
}


@pytest.mark.parametrize("first", ["supervised", "penalty"])
@pytest.mark.parametrize("bare", [False, True], ids=["module", "bare function"])
@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.filterwarnings("ignore:finite differences are noise")
def test_under_autocast_the_penalty_and_the_supervised_loss_keep_all_their_gradients(name, bare, first):
    # Autocast caches the casts of weights. The next pass would use a cast made without a graph and lose its gradient.
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 3))
    x, y = torch.randn(64, 2, 4, 4), torch.randint(3, (64,))
    regularizer = AUTOCAST[name]()
    regularizer.on_fit_start(module)
    if isinstance(regularizer, MeanTeacher):
        regularizer.teacher = {name: p + 0.3 * torch.randn_like(p) for name, p in regularizer.teacher.items()}
    forward = (lambda x: module(x)) if bare and name != "MeanTeacher" else module

    def gradients(enabled):
        terms = {}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for term in ("supervised", "penalty") if first == "supervised" else ("penalty", "supervised"):
                if term == "penalty":
                    named = None if forward is module else ()
                    step = Step(forward, x, y, module=named, key=KEY, live=regularizer.differentiates_clean_pass)
                    terms[term] = regularizer.penalty(step)
                else:
                    torch.manual_seed(1)
                    terms[term] = nn.functional.cross_entropy(module(x).float(), y)
        assert terms["penalty"].dtype == torch.float32
        found = []
        for term in ("supervised", "penalty"):
            module.zero_grad()
            terms[term].backward(retain_graph=True)
            found += [p.grad.flatten().clone() for p in module.parameters()]
        return found

    for low, wanted in zip(gradients(True), gradients(False), strict=True):
        assert nn.functional.cosine_similarity(low, wanted, 0) > 0.98  # bfloat16 keeps 8 bits
        assert 0.9 < low.norm() / wanted.norm() < 1.1


@pytest.mark.parametrize("name", MAKERS)
def test_a_regularizer_has_no_parameters_and_can_be_copied(name):
    module = network()
    regularizer = make(name, module)
    assert list(regularizer.parameters()) == []
    x, y = batch()
    a, b = (r.penalty(Step(module, x, y, key=KEY, live=True)) for r in (regularizer, copy.deepcopy(regularizer)))
    assert torch.equal(a, b)


class Constant(Regularizer):
    def penalty(self, step):
        return torch.ones(())


def test_the_weight_ramps_up_as_in_the_paper_and_scales_the_penalty():
    regularizer = Constant(weight=3.0, ramp_up=4)
    for t in range(7):
        wanted = 3.0 * math.exp(-5 * (1 - min(t, 4) / 4) ** 2)
        assert regularizer.current_weight == pytest.approx(wanted, rel=1e-12)
        assert regularizer(nn.Linear(2, 2), torch.zeros(1, 2)).item() == pytest.approx(wanted, rel=1e-6)
        regularizer.on_optimizer_step_end(nn.Linear(2, 2))
    assert Constant(weight=3.0).current_weight == 3.0


def test_the_state_resumes_the_ramp(tmp_path):
    one, two = Constant(ramp_up=10), Constant(ramp_up=10)
    for _ in range(3):
        one.on_optimizer_step_end(nn.Linear(2, 2))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert two.current_weight == one.current_weight != Constant(ramp_up=10).current_weight


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("argument", "make_it"),
    [
        ("eps", lambda v: VAT(v)),
        ("eps", lambda v: VAT(v, direction="ascent")),
        ("eps", lambda v: RandomPerturbation(v)),
        ("eps", lambda v: Adversarial(v)),
        ("weight", lambda v: VAT(1.0, weight=v)),
        ("weight", lambda v: Entropy(weight=v)),
        ("ramp_up", lambda v: PiModel(ramp_up=v)),
        ("decay", lambda v: MeanTeacher(decay=v)),
        ("xi", lambda v: VAT(1.0, xi=v)),
    ],
)
def test_a_number_out_of_range_is_refused_by_name_and_value(argument, make_it, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .* got {value}"):
        make_it(value)


def test_names_follow_from_the_classes():
    made = [VAT(1.0), RandomPerturbation(1.0), Adversarial(1.0), Entropy(), PiModel(), MeanTeacher()]
    wanted = ["vat", "random_perturbation", "adversarial", "entropy", "pi_model", "mean_teacher"]
    assert [r.name for r in made] == wanted


@pytest.mark.parametrize("kind", ["vat", "random", "adversarial", "entropy", "pi_model"])
def test_gradients_reach_what_the_inputs_were_computed_from(kind):
    """Check gradients to an embedding or an earlier part of the network by each penalty's definition, with constant r and target."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(N, 5, dtype=torch.float64, requires_grad=True), torch.arange(N) % 3
    regularizer = {
        "vat": VAT(0.5),
        "random": RandomPerturbation(0.5),
        "adversarial": Adversarial(0.5),
        "entropy": Entropy(),
        "pi_model": PiModel(),
    }[kind]
    embedded = x * 2
    step = Step(head, embedded, y, key=KEY, live=regularizer.differentiates_clean_pass)
    regularizer.term(step).backward()

    leaf = embedded.detach().requires_grad_()
    log_p = head(leaf).log_softmax(1)
    if kind == "entropy":
        penalty = -(log_p.exp() * log_p).sum(1).mean()
    elif kind == "pi_model":  # without noise the two passes are the same
        penalty = 0 * log_p.sum()
    elif kind == "adversarial":
        (g,) = torch.autograd.grad(nn.functional.nll_loss(log_p, y), leaf)
        penalty = nn.functional.cross_entropy(head(leaf + 0.5 * g / g.norm(dim=1, keepdim=True)), y)
    else:
        r = regularizer.virtual_adversarial_perturbation(Step(head, leaf.detach(), key=KEY))
        target, log_q = log_p.detach(), head(leaf + r).log_softmax(1)
        penalty = (target.exp() * (target - log_q)).sum(1).mean()
    (expected,) = torch.autograd.grad(penalty, leaf)
    torch.testing.assert_close(x.grad, 2 * expected)


class Recomputing(nn.Module):
    """Does not keep the activations of its first layers."""

    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(checkpoint(self.block, x, use_reentrant=False))


class Plain(Recomputing):
    def forward(self, x):
        return self.head(self.block(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith("VAT")])
def test_activations_that_are_computed_again_are_the_same(name, training):
    x, found = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), []
    for kind in (Plain, Recomputing):
        torch.manual_seed(0)
        network = kind().train(training)
        torch.manual_seed(1)
        for _ in range(2):  # the first call finds the checkpoint
            penalty = MAKERS[name]()(network, x)
            network.zero_grad()
            penalty.backward()
        found.append((penalty.detach(), [p.grad for p in network.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_batch_norm_that_is_computed_again_moves_once_in_each_backward_pass_through_it():
    class Normalised(Recomputing):
        def __init__(self):
            super().__init__()
            self.block.append(nn.BatchNorm1d(self.head.in_features))

    network, x = Normalised(), torch.randn(N, 5)
    assert network.block[-1].num_batches_tracked == 0
    VAT(0.5)(network, x)  # finds the checkpoint
    network.block[-1].num_batches_tracked.zero_()
    term = VAT(0.5)(network, x)
    assert network.block[-1].num_batches_tracked == 1  # from the direction's pass
    term.backward()
    assert network.block[-1].num_batches_tracked == 2  # from the penalty's pass


def test_a_reentrant_checkpoint_is_refused_in_a_sentence():
    class Reentrant(Recomputing):
        def forward(self, x):
            return self.head(checkpoint(self.block, x, use_reentrant=True))

    with pytest.raises(RuntimeError, match=r"vat needs gradients .* use_reentrant=True cannot compute them: pass use_reentrant=False"):
        VAT(0.5)(Reentrant(), torch.randn(N, 5))


def test_a_term_whose_weight_is_0_may_be_the_only_one():
    module = nn.Linear(2, 2)
    term = VAT(1.0, weight=0.0)(module, torch.ones(3, 2))
    term += 1  # like a loss that is summed in place
    term.backward()
    assert all(p.grad is None for p in module.parameters())


def test_reset_discards_the_state_of_the_run():
    module = nn.Linear(2, 2)
    for regularizer in (VAT(1.0, ramp_up=5), MeanTeacher(ramp_up=5)):
        fresh = regularizer.current_weight
        regularizer.on_fit_start(module)
        regularizer.on_optimizer_step_end(module)
        assert regularizer.current_weight != fresh
        regularizer.reset()
        assert regularizer.current_weight == fresh
    assert not regularizer.teacher


def test_under_inference_mode_r_is_refused_unless_it_is_random():
    x, module = torch.ones(3, 2), nn.Linear(2, 2)
    with torch.inference_mode():
        RandomPerturbation(1.0)(module, x)
        with pytest.raises(RuntimeError, match=r"inference mode has none: pass inference_mode=False to the Trainer"):
            VAT(1.0)(module, x)


def test_a_divergence_that_takes_the_mean_itself_is_refused():
    class Mean(Categorical):
        def __call__(self, clean, perturbed):
            return super().__call__(clean, perturbed).mean()

    with pytest.raises(ValueError, match=r"a value for each example, of shape \(N,\), got a single number"):
        VAT(1.0, divergence=Mean())(nn.Linear(2, 2), torch.ones(3, 2))


MAKES = {
    "vat": lambda **o: VAT(0.5, **o),
    "random_perturbation": lambda **o: RandomPerturbation(0.5, **o),
    "adversarial": lambda **o: Adversarial(0.5, **o),
    "entropy": Entropy,
    "class_balance": ClassBalance,
    "pi_model": PiModel,
    "mean_teacher": MeanTeacher,
    "published_vat": lambda **o: PublishedVAT(0.5, xi=1e-3, **o),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_weight_and_ramp_are_taken_by_all(make):
    made = make(weight=3.0, ramp_up=4)
    assert (made.weight, made.ramp_up) == (3.0, 4)


def test_a_regularizer_that_was_second_is_the_only_one_in_another_run():
    first, second = VAT(1.0), VAT(2.0)
    assert list(by_unique_name([first, second])) == ["vat", "vat_2"]
    assert list(by_unique_name([second])) == ["vat"]


def test_what_is_no_regularizer_is_refused():
    with pytest.raises(TypeError, match=r"must be vat.Regularizer objects, got 3"):
        by_unique_name([3])
