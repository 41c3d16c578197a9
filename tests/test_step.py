import copy
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from functools import partial

import pytest
import torch
from networks import ReassigningCounter
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from vat import VAT
from vat.network import Network
from vat.random_state import random_state
from vat.step import Key, Step

KEY = Key(seed=5)


def moving_network():
    """A network whose every forward pass updates buffers and draws random numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        spectral_norm(nn.Linear(5, 8)),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        ReassigningCounter(),
        nn.Dropout(),
        nn.Linear(8, 3),
    )


def rows(n=6, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module, before):
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


# ---------------------------------------------------------------------------------------------------------------------- keys


def test_seeds_of_a_key_are_the_same_in_every_process_and_release():
    # Stored numbers: Python's own `hash` of a string would differ from process to process, and a resumed run from the first.
    assert Key(3, 4, 5).own("a") == 15699110955085169329
    assert Key(3, 4, 5).shared("a") == 7268558572459228692


def test_streams_differ_by_seed_step_purpose_and_rank_and_only_own_ones_by_rank():
    keys = [Key(seed, step, rank) for seed in range(4) for step in range(4) for rank in range(4)]
    own = {key.own(purpose) for key in keys for purpose in "ab"}
    shared = {key.shared(purpose) for key in keys for purpose in "ab"}
    assert len(own) == 4 * 4 * 4 * 2
    assert len(shared) == 4 * 4 * 2
    assert not own & shared
    for seed in own | shared:
        torch.Generator().manual_seed(seed)  # the generator accepts it


def test_fresh_keys_follow_from_torchs_seed():
    torch.manual_seed(3)
    first = [Key.fresh(), Key.fresh()]
    torch.manual_seed(3)
    assert [Key.fresh(), Key.fresh()] == first
    assert first[0] != first[1]


def test_random_state_restores_the_generators_even_if_the_body_raises():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with random_state(7, torch.device("cpu")):
        inside = torch.randn(3)
    with random_state(7, torch.device("cpu")):
        assert torch.equal(torch.randn(3), inside)
    with suppress(KeyError), random_state(7, torch.device("cpu")):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("bare", [False, True], ids=["module", "bare function"])
@pytest.mark.parametrize("constant", [False, True])
def test_a_call_gives_what_the_module_gives_from_that_seed_and_does_not_change_it(bare, constant):
    module = moving_network()
    before, modes = state(module), [m.training for m in module.modules()]
    reference = copy.deepcopy(module)
    torch.manual_seed(11)
    wanted = reference(rows())
    network = Network((lambda x: module(x)) if bare else module, module if bare else None)
    torch.manual_seed(0)
    rng = torch.get_rng_state()
    for _ in range(2):  # the second call starts from the same buffers as the first
        torch.testing.assert_close(network(rows(), seed=11, constant=constant), wanted, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_same_state(module, before)
    assert [m.training for m in module.modules()] == modes
    assert not torch.equal(state(reference)["1.running_mean"], before["1.running_mean"])  # an ordinary call updates them


@pytest.mark.parametrize("bare", [False, True], ids=["module", "bare function"])
def test_a_tracked_call_moves_buffers_as_an_ordinary_call_does(bare):
    module = moving_network()
    reference = copy.deepcopy(module)
    torch.manual_seed(11)
    reference(rows())
    network = Network((lambda x: module(x)) if bare else module, module if bare else None)
    network(rows(), seed=11, track=True, constant=True)
    assert_same_state(module, state(reference))


@pytest.mark.parametrize("bare", [False, True], ids=["module", "bare function"])
def test_a_network_that_raises_does_not_change(bare):
    module = moving_network()
    parameters, before = dict(module.named_parameters()), state(module)

    def fail(*_):
        raise FloatingPointError("on purpose")

    module[5].register_forward_pre_hook(fail)  # after every layer that updates buffers
    network = Network((lambda x: module(x)) if bare else module, module)
    torch.manual_seed(0)
    rng = torch.get_rng_state()
    for constant in (False, True):
        with pytest.raises(FloatingPointError, match="on purpose"):
            network(rows(), seed=1, constant=constant, parameters=None)
    assert_same_state(module, before)
    assert all(p is parameters[name] for name, p in module.named_parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("bare", [False, True], ids=["module", "bare function"])
def test_constant_parameters_take_no_gradient_and_others_do(bare):
    module = moving_network()
    network = Network((lambda x: module(x)) if bare else module, module if bare else None)
    x = rows().requires_grad_()
    for constant in (True, False):
        logits = network(x, seed=1, constant=constant)
        gradients = torch.autograd.grad(logits.square().sum(), [x, *module.parameters()], allow_unused=True)
        assert gradients[0].abs().max() > 0
        assert all((g is None) == constant for g in gradients[1:])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize(
    ("make", "x"),
    [
        pytest.param(moving_network, rows(), id="spectral and batch norm"),
        pytest.param(Recurrent, torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0)), id="LSTM"),
        pytest.param(Tied, rows(), id="tied weights"),
    ],
)
def test_given_parameters_replace_the_modules(make, x):
    module, other = make(), make()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    if isinstance(module, nn.Sequential):
        for name, buffer in other.named_buffers():
            buffer.copy_(dict(module.named_buffers())[name])
    logits = Network(module)(x, seed=4, parameters={name: p.detach() for name, p in other.named_parameters()})
    torch.manual_seed(4)
    torch.testing.assert_close(logits, other(x))
    torch.manual_seed(4)
    assert (logits - module(x)).abs().max() > 1e-3


def test_a_bare_function_without_a_module_is_called_as_it_is():
    weight = torch.randn(5, 3, requires_grad=True)
    torch.testing.assert_close(Network(lambda x: x @ weight, ())(rows(), seed=0), rows() @ weight)


# ---------------------------------------------------------------------------------------------------------------------- step


def test_all_passes_of_a_step_share_their_masks_and_start_from_the_same_buffers():
    step = Step(moving_network(), rows(), key=KEY)
    target = step.target
    assert torch.equal(step.clean.logits, target)
    assert torch.equal(step.network(rows()), target)
    assert torch.equal(step.network(rows(), constant=True), target)
    assert not torch.allclose(step.network(rows(), noise="other"), target)


def test_another_key_draws_other_masks_and_the_same_key_the_same():
    module = moving_network()
    by_key = [Step(module, rows(), key=key).target for key in (KEY, KEY, Key(6), Key(5, micro_step=1), Key(5, rank=1))]
    assert torch.equal(by_key[0], by_key[1])
    assert all(not torch.allclose(by_key[0], other) for other in by_key[2:])


@pytest.mark.parametrize("live", [False, True])
def test_the_clean_pass_reaches_the_parameters_only_if_it_is_live(live):
    module = moving_network()
    clean = Step(module, rows(), key=KEY, live=live).clean
    gradients = torch.autograd.grad(clean.logits.square().sum(), [clean.x, *module.parameters()], allow_unused=True)
    assert gradients[0].abs().max() > 0
    assert all((g is None) != live for g in gradients[1:])


@pytest.mark.parametrize("live", [False, True])
def test_only_a_tracked_clean_pass_moves_the_running_statistics_and_only_once(live):
    module, reference = moving_network(), moving_network()
    before = state(module)
    step = Step(module, rows(), key=KEY, live=live)
    assert not step.target.requires_grad
    assert step.clean.logits.shape == (6, 3)
    assert_same_state(module, before)

    with random_state(KEY.own("network"), torch.device("cpu")):
        logits = reference(rows())
    step = Step(module, rows(), key=KEY, live=live, track=True)
    assert torch.equal(step.clean.logits, logits)
    assert torch.equal(step.network(step.x), logits)  # from the earlier buffers
    assert torch.equal(step.target, logits)
    assert_same_state(module, state(reference))


def test_the_clean_pass_works_under_no_grad():
    with torch.no_grad():
        step = Step(moving_network(), rows(), key=KEY)
        assert step.clean.logits.requires_grad
        assert not step.target.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_random_rows_follow_from_their_place_in_the_global_batch(dtype):
    x = rows(12).to(dtype)
    whole = Step(moving_network(), x, key=KEY).normal("direction")
    assert whole.dtype == torch.promote_types(dtype, torch.float32)
    for start, stop in ((0, 12), (0, 5), (5, 6), (6, 12), (12, 12)):
        key = Key(KEY.seed, rank=start)  # ranks share the draw
        part = Step(moving_network(), x[start:stop], key=key, start=start, total=12).normal("direction")
        assert torch.equal(part, whole[start:stop])


def test_numbers_for_rows_follow_from_their_place_in_the_global_batch():
    x = rows(12)
    whole = Step(moving_network(), x, key=KEY).uniform("class")
    assert whole.shape == (12,)
    assert (whole >= 0).all()
    assert (whole < 1).all()
    assert len(whole.unique()) == 12
    for start, stop in ((0, 5), (5, 12), (12, 12)):
        part = Step(moving_network(), x[start:stop], key=Key(KEY.seed, rank=start), start=start, total=12)
        assert torch.equal(part.uniform("class"), whole[start:stop])
    assert not torch.equal(whole, Step(moving_network(), x, key=Key(5, micro_step=1)).uniform("class"))


def test_random_rows_differ_by_purpose_step_and_row_but_one_row_is_the_same_for_any_batch():
    x = rows()
    step = Step(moving_network(), x, key=KEY)
    assert not torch.equal(step.normal("a"), step.normal("b"))
    assert torch.equal(step.normal("a"), step.normal("a"))
    assert not torch.equal(step.normal("a"), Step(moving_network(), x, key=Key(5, micro_step=1)).normal("a"))
    assert len(step.normal("a").unique(dim=0)) == 6
    assert step.normal("a", one_row=True).shape == (1, 5)
    part = Step(moving_network(), x[4:], key=Key(5, rank=3), start=4, total=6)
    assert torch.equal(part.normal("a", one_row=True), step.normal("a", one_row=True))


def test_drawing_with_a_key_does_not_use_torchs_default_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    step = Step(moving_network().eval(), rows(), key=KEY)
    torch.manual_seed(0)
    _ = step.normal("a"), step.clean, step.network(step.x), step.target
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("live", [False, True])
def test_only_a_live_clean_pass_sends_gradients_to_the_callers_tensor(live):
    x = rows().requires_grad_()
    step = Step(moving_network(), x, key=KEY, live=live)
    step.clean.logits.sum().backward()
    assert (x.grad is not None) == live
    assert x.requires_grad
    assert torch.equal(x, rows())


class Aliased(nn.Module):
    """A network in which one layer has two names, another is used twice, and two weights are tied."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5))
        self.stem = self.body[0]
        self.twice = nn.Sequential(self.body, self.body)
        self.tied = nn.Linear(5, 5, bias=False)
        self.tied.weight = self.body[3].weight

    def forward(self, x):
        return self.tied(self.twice(x))


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("module", [False, True])
def test_layers_with_several_names_do_not_change(module):
    network = Aliased()
    before = state(network)
    held = dict((*network.named_parameters(), *network.named_buffers()))
    own = network(rows())
    network.load_state_dict(before)
    step = Step(Around(network), rows(), module=network, key=KEY) if module else Step(network, rows(), key=KEY)
    assert torch.equal(step.network(step.x, constant=True), own)
    assert not step.network(step.x, constant=True).requires_grad
    assert all(tensor is held[name] for name, tensor in (*network.named_parameters(), *network.named_buffers()))
    assert_same_state(network, before)


def test_tied_weights_are_replaced_in_each_place():
    network, other = Aliased().eval(), Aliased().eval()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    step = Step(network, rows(), key=KEY)
    assert torch.equal(step.network(step.x, parameters=dict(other.named_parameters())), other(rows()))


def test_weights_for_a_bare_function_are_refused():
    step = Step(torch.sin, rows(), key=KEY, module=())
    with pytest.raises(ValueError, match="pass module=model, the module that it uses"):
        step.network(step.x, parameters=dict(moving_network().named_parameters()))


@pytest.mark.parametrize("output", [tuple, list])
def test_an_output_that_is_no_tensor_is_refused_in_a_sentence(output):
    with pytest.raises(TypeError, match="pass a function that selects them"):
        _ = Step(lambda x: output([x]), rows(), module=(), key=KEY).target


def test_a_network_that_cannot_run_on_copies_is_refused_in_a_sentence():
    for network in (nn.DataParallel(nn.Linear(5, 3)), torch.jit.script(nn.Linear(5, 3))):
        with pytest.raises(TypeError, match="pass the module that it was made from"):
            Step(network, rows(), key=KEY)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_masked_transformer_in_evaluation_mode_is_one_function():
    # With torch's fused path the passes without a graph would set hidden positions to zero, and differ from those with one.
    torch.manual_seed(0)
    body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    hidden = torch.arange(4)[None] >= torch.tensor([2, 3, 4])[:, None]
    x = torch.randn(3, 4, 8)
    step = Step(lambda x: body(x, src_key_padding_mask=hidden).flatten(1), x, module=body, key=KEY)
    target = step.target
    assert (target - step.clean.logits).abs().max() < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


class NormalisesInPlace(nn.Module):
    """Like torchvision's `Normalize(inplace=True)` in front of a network."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(x.sub_(0.5).div_(0.3))


def test_a_network_that_changes_its_input_in_place_sees_the_same_input_in_every_pass():
    module, x = NormalisesInPlace(), rows()
    wanted = module(rows())
    step = Step(module, x, key=KEY)
    for _ in range(2):
        torch.testing.assert_close(step.network(step.x, constant=True), wanted, rtol=0, atol=0)
    torch.testing.assert_close(step.target, wanted, rtol=0, atol=0)
    assert torch.equal(x, rows())
    torch.testing.assert_close(step.clean.logits, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_inputs_that_cannot_be_perturbed_are_refused(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        Step(moving_network(), torch.ones(2, 5, dtype=dtype))


class Keeping(nn.Module):
    """Keeps tensors in plain attributes: a loss, a hidden state that starts as None, and one that only a call creates."""

    def __init__(self):
        super().__init__()
        self.layer, self.state = nn.Linear(5, 3), None

    def forward(self, x):
        out = self.layer(x) if self.state is None else self.layer(x) + self.state.mean()
        self.state, self.loss = out.detach(), out.square().mean()
        return out


@pytest.mark.parametrize("constant", [False, True])
def test_what_layers_keep_in_plain_attributes_does_not_change(constant):
    module = Keeping()
    first = Network(module)(rows(), seed=1, constant=constant)
    assert module.state is None
    assert not hasattr(module, "loss")
    module(rows())
    state, loss = module.state, module.loss
    passes = [Network(module)(rows(), seed=1, constant=constant) for _ in range(2)]
    assert torch.equal(*passes)  # each from the earlier state
    assert not torch.equal(passes[0], first)
    assert module.state is state
    assert module.loss is loss
    loss.backward()
    assert module.layer.weight.grad is not None


class KeepingMore(nn.Module):
    """Keeps other state: the largest length seen, which is the length of a buffer, buffers that a first call creates, and containers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.longest, self.state, self.losses, self.seen, self.sizes = 0, (torch.zeros(3), 0), [], {}, set()
        self.calls, self.recent, self.ordered, self.by_size = Counter(), deque(maxlen=2), OrderedDict(), defaultdict(int)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("mean", None)

    def forward(self, x):
        if len(x) > self.longest:
            self.longest = len(x)
            self.register_buffer("scale", torch.full((1,), float(len(x))))
            self.register_buffer("extra", torch.ones(1))
        if self.mean is None:
            self.mean = x.mean(0)
        out = self.layer(x - self.mean) * self.scale + self.state[1]
        self.state = (out.detach(), self.state[1] + 1)
        self.losses.append(out.square().mean())
        self.seen["out"] = out
        self.sizes.add(len(x))
        self.calls["forward"] += 1
        self.recent.append(len(x))
        self.ordered[len(x)] = len(self.sizes)
        self.by_size[len(x)] += 1
        return out


@pytest.mark.parametrize("constant", [False, True])
def test_whatever_else_layers_keep_does_not_change(constant):
    untouched, module = KeepingMore(), KeepingMore()
    module.load_state_dict(untouched.state_dict())
    losses = module.losses
    for inputs in (rows(), 2 * rows()[:2]):
        passes = [Network(module)(torch.cat([inputs + 1] * 2), seed=1, constant=constant) for _ in range(2)]
        assert torch.equal(*passes)
        assert torch.equal(module(inputs), untouched(inputs))
        assert module.longest == untouched.longest
        assert module.state[1] == untouched.state[1]
        assert module.losses is losses
        assert len(losses) == len(untouched.losses)
        assert torch.equal(module.seen["out"], untouched.seen["out"])
        for name in ("sizes", "calls", "recent", "ordered", "by_size"):
            assert getattr(module, name) == getattr(untouched, name), name
        assert dict(module.named_buffers()).keys() == dict(untouched.named_buffers()).keys()


class BuiltByUse(nn.Module):
    def __init__(self):
        super().__init__()
        self.built, self.layer = False, None

    def forward(self, x):
        if not self.built:
            self.layer, self.built = nn.Linear(x.shape[1], 3), True
        return self.layer(x)


class BuiltIntoAList(BuiltByUse):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList()

    def forward(self, x):
        if not self.built:
            self.layers.append(nn.Linear(x.shape[1], 3))
            self.built = True
        return sum(layer(x) for layer in self.layers)


@pytest.mark.parametrize("make", [BuiltByUse, BuiltIntoAList])
def test_a_layer_that_a_pass_has_built_stays_built(make):
    module = make()
    first, second = (Network(module)(rows(), seed=1) for _ in range(2))
    assert module.built
    assert torch.equal(first, second)


def test_a_lazy_layer_knows_its_width_after_a_tracked_pass():
    module = nn.Sequential(nn.LazyLinear(3))
    Network(module)(rows(), seed=1, track=True)
    assert module[0].in_features == rows().shape[1]


class Frozen(list):
    def clear(self):
        raise TypeError("does not support mutation")


def test_scripted_layers_and_containers_of_other_kinds_do_not_change():
    scripted = nn.Sequential(torch.jit.script(nn.Linear(5, 4)), nn.Linear(4, 3))
    assert Network(scripted)(rows().float(), seed=1).shape == (len(rows()), 3)
    module = KeepingMore()
    module.fixed = Frozen([1, 2])
    Network(module)(rows(), seed=1)
    assert module.fixed == [1, 2]


def test_what_a_hook_keeps_in_a_layer_of_torch_does_not_change():
    layer = nn.Linear(5, 3)
    layer.register_forward_hook(lambda module, _, out: setattr(module, "features", out))
    Network(nn.Sequential(layer))(rows(), seed=1)
    assert not hasattr(layer, "features")


def test_a_tracked_pass_changes_the_attributes():
    module = Keeping()
    out = Network(module)(rows(), seed=1, track=True)
    assert torch.equal(module.state, out)


class WithMethods(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.BatchNorm1d(5)

    def forward(self, x, scale=1.0):
        return scale * self.layer(x)

    def classify(self, x):
        return self(x)


@pytest.mark.parametrize(
    "function", [lambda m: m.forward, lambda m: m.classify, lambda m: partial(m, scale=2.0), lambda m: partial(m.classify)]
)
def test_the_module_behind_a_method_or_a_partial_is_found_without_being_named(function):
    module = WithMethods()
    network = Network(function(module))
    assert network.module is module
    network(rows(), seed=1)
    assert module.layer.num_batches_tracked == 0


class Loop:
    """A user's own trainer."""

    def __init__(self, module):
        self.module = module

    def classify(self, x):
        return self.module(x)

    __call__ = classify


USING = {
    "partial": lambda m: partial(lambda module, x: module(x), m),
    "lambda": lambda m: lambda x: m(x),
    "default": lambda m: lambda x, m=m: m(x),
    "method": lambda m: Loop(m).classify,
    "callable": Loop,
    "two": lambda m: partial(lambda one, other, x: other(one(x)), m, nn.Tanh()),
    "compiled": lambda m: torch.compile(lambda x: m(x), backend="eager"),
}


@pytest.mark.parametrize("function", USING.values(), ids=USING)
def test_the_modules_that_another_function_uses_are_named(function):
    module = WithMethods()
    with pytest.raises(TypeError, match=r"is not known: pass it, as vat\(lambda x: model\(x\), x, module=model\)"):
        VAT(1.0)(function(module), rows())
    for named in (module, [module], [nn.Tanh(), module]):
        network = Network(function(module), named)
        network(rows(), seed=1)
        assert module.layer.num_batches_tracked == 0
        gradients = torch.autograd.grad(
            network(rows().requires_grad_(), seed=1, constant=True).sum(), [*module.parameters()], allow_unused=True
        )
        assert gradients == (None, None)
    network(rows(), seed=1, track=True)
    assert module.layer.num_batches_tracked == 1
    assert Network(function(module), ()).module is None  # the user's choice


def test_modules_among_the_arguments_of_a_partial_are_protected():
    class Two(WithMethods):
        def forward(self, other, x):
            return other(self.layer(x))

    module, other = Two(), WithMethods()
    Network(partial(module, other))(rows(), seed=1)
    assert module.layer.num_batches_tracked == other.layer.num_batches_tracked == 0


def test_weights_of_several_modules_have_the_names_of_a_list():
    modules = [nn.Linear(5, 4), nn.Linear(4, 3)]
    network = Network(lambda x: modules[1](modules[0](x)), modules)
    others = {name: 2 * p.detach() for name, p in nn.ModuleList(modules).named_parameters()}
    wanted = nn.Sequential(*copy.deepcopy(modules))
    with torch.no_grad():
        for p in wanted.parameters():
            p.mul_(2)
    torch.testing.assert_close(network(rows(), seed=1, parameters=others), wanted(rows()))


@pytest.mark.parametrize("module", ["model", [nn.Tanh(), "head"], torch.sin])
def test_a_module_argument_that_is_not_a_module_is_refused(module):
    with pytest.raises(TypeError, match=r"must be an nn\.Module, a list of several, or \(\) if there is none|not iterable"):
        Network(torch.sin, module)


def test_a_function_may_use_lazy_layers_and_checkpoints():
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3))
    VAT(1.0)(lambda x: lazy(x), rows(), module=lazy).backward()
    inner = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    VAT(1.0)(lambda x: checkpoint(inner, x, use_reentrant=False), rows(), module=()).backward()
    assert all(p.grad is not None for module in (lazy, inner) for p in module.parameters())


def test_a_buffer_that_was_deleted_after_the_step_was_made_is_left_out():
    module = WithMethods()
    module.register_buffer("only_at_first", torch.ones(1))
    step = Step(module, rows(), key=KEY)
    del module.only_at_first
    assert step.target.shape == (6, 5)
    assert "only_at_first" not in module._buffers


@pytest.mark.parametrize("network", [torch.no_grad()(nn.Linear(5, 3)), lambda x: x.detach() + 1, lambda x: x.argmax(1)])
def test_a_network_without_a_gradient_is_refused_in_a_sentence(network):
    with pytest.raises(RuntimeError, match=r"the network's output has no gradient with respect to its input: look for torch\.no_grad"):
        VAT(1.0)(network, rows(), module=())


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.eye(5).to_sparse(), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])])
def test_inputs_that_cannot_be_perturbed_row_by_row_are_refused(x):
    with pytest.raises(TypeError, match=r"x must be dense and of shape \(N, …\): use x"):
        VAT(1.0)(nn.Linear(5, 3), x)


def test_cached_parametrizations_keep_their_gradients():
    module = nn.Sequential(weight_norm(nn.Linear(5, 3)))
    with parametrize.cached():
        Network(module)(rows(), seed=1, constant=True)  # would fill the cache with weights without a gradient
        module(rows()).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert parametrize._cache_enabled == 0


@pytest.mark.parametrize("function", [lambda x: x.mT, lambda x: x.repeat(2, 1), lambda x: x.sum()])
def test_outputs_whose_rows_are_not_the_inputs_are_refused(function):
    with pytest.raises(ValueError, match=r"the first dimension of inputs and outputs must count the examples, got \(6, 5\) and"):
        Network(function, ())(rows(), seed=1)


@pytest.mark.parametrize("x", [nn.Linear(5, 3), "x", None, (torch.zeros(2, 5), 3), {"input": torch.ones(2, 5).long()}, ()])
def test_inputs_that_cannot_be_perturbed_are_refused_in_a_sentence(x):
    with pytest.raises(TypeError, match=r"must be a tensor of a floating dtype|at must be a layer"):
        Step(nn.Linear(5, 3), x)


def test_inputs_made_under_inference_mode_work():
    with torch.inference_mode():
        x = rows() + 0
    VAT(1.0)(nn.Linear(5, 3), x).backward()
