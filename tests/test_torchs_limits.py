"""What torch cannot differentiate or computes again: the result is right, or one sentence says what to do."""

import warnings

import pytest
import torch
from networks import rows
from torch import nn
from torch.ao import quantization
from torch.utils.checkpoint import checkpoint

from vat import VAT, Adversarial, RandomPerturbation, local_distributional_smoothness
from vat.directions import DIRECTIONS
from vat.evaluation.diagnosis import diagnose
from vat.functional import Categorical
from vat.step import Key, Step

KEY = Key(5)
BY_GRADIENT = [name for name in DIRECTIONS if name != "random"]

# ----------------------------------------------------------------------------------------------------------------- quantized


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x[:, None])[0][:, -1])


class Residual(nn.Module):
    """A gradient that bypasses its quantized block, so it describes only half of the network."""

    def __init__(self):
        super().__init__()
        self.block, self.head = quantized(nn.Sequential(nn.Linear(6, 6))), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x + self.block(x))


def quantized(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that torchao will replace this
        return quantization.quantize_dynamic(network, {nn.Linear, nn.LSTM}, dtype=torch.qint8)


def static():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(quantization.QuantStub(), *mlp(), quantization.DeQuantStub()).eval()
        network.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        quantization.prepare(network, inplace=True)
        network(torch.randn(50, 6))
        return quantization.convert(network, inplace=True)


QUANTIZED = {
    "dynamic": lambda: quantized(mlp()),
    "recurrent": lambda: quantized(Recurrent()),
    "static": static,
    "first": lambda: nn.Sequential(quantized(nn.Sequential(nn.Linear(6, 8))), nn.ReLU(), nn.Linear(8, 3)),
    "residual": Residual,
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_network_is_refused_in_a_sentence_but_the_control_works(name):
    network, x = QUANTIZED[name](), torch.randn(4, 6)
    message = "the network has quantized layers.*train the network in floats with the regularizer and quantize it afterwards"
    for direction in BY_GRADIENT:
        with pytest.raises(RuntimeError, match=message):
            VAT(0.5, direction=direction)(network, x)
        with pytest.raises(RuntimeError, match=message):
            local_distributional_smoothness(network, x, eps=0.5, direction=direction)
    with pytest.raises(RuntimeError, match=message):
        Adversarial(0.5)(network, x, torch.zeros(4, dtype=torch.long))
    with pytest.raises(RuntimeError, match=message):
        VAT(0.5)(lambda x: network(x), x, module=network)
    step = Step(network, x, key=KEY)
    control = RandomPerturbation(0.5)
    r = control.virtual_adversarial_perturbation(step)
    torch.testing.assert_close(control.penalty(step), Categorical()(network(x), network(x + r)).mean())


def test_a_network_without_a_gradient_that_torch_calls_unused_is_refused_in_a_sentence():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x.detach())

    hidden = Detached()
    for module in (hidden, ()):  # the weights of a plain function are never constants
        with pytest.raises(RuntimeError, match=r"(?i)the network's output has no gradient with respect to its input"):
            VAT(0.5)(lambda x: hidden(x), torch.randn(4, 6), module=module)


def test_embeddings_instead_of_ids_give_an_error_that_says_how_to_perturb_them():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 4)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids):
            n, t = input_ids.shape
            return self.embedding(input_ids).view(n, t, -1).mean(1)

    with pytest.raises(ValueError, match="too many values") as raised:
        VAT(1.0)(Encoder(), torch.randn(2, 5, 4))
    assert "vat(model, batch, at=model.get_input_embeddings(), mask=batch['attention_mask'])" in "".join(raised.value.__notes__)


# ------------------------------------------------------------------------------------------------------------------ compiled


def test_exact_in_a_compiled_step_is_the_same_as_outside_or_refused():
    network, x, vat = mlp(), torch.randn(4, 6), VAT(0.5, direction="exact")

    def term(x):
        return vat.term(Step(network, x, key=KEY))

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(term, backend="eager")(x), term(x))
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"vat needs gradients .*call the regularizer outside of torch.compile"):
        torch.compile(term, backend="aot_eager")(x)
    torch._dynamo.reset()


# -------------------------------------------------------------------------------------------------------------- checkpoints


class Square(nn.Module):
    """Weights, activations and batch have one shape, so torch cannot distinguish them by shape."""

    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(2))
        self.head, self.reentrant = nn.Linear(8, 3), reentrant
        self.double()

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_checkpointed_network_whose_tensors_look_alike_has_the_same_term_and_gradient(direction):
    x, found = rows(8, 8), []
    for reentrant in (None, False):
        network, vat = Square(reentrant), VAT(0.5, direction=direction)
        term = vat.term(Step(network, x, key=KEY))
        term.backward()
        found.append([term.detach(), *(p.grad for p in network.parameters())])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["margin", "finite_difference", "exact"])
def test_measures_work_on_a_checkpointed_network(direction):
    x = rows(8, 8)
    smoothness, diagnosis = (
        [function(network) for network in (Square(), Square(reentrant=False))]
        for function in (
            lambda network: local_distributional_smoothness(network, x, eps=0.5, direction=direction, key=KEY),
            lambda network: diagnose(network, x, VAT(0.5, direction=direction), key=KEY),
        )
    )
    torch.testing.assert_close(*smoothness, rtol=0, atol=0)
    torch.testing.assert_close(*diagnosis, rtol=1e-9, atol=1e-12)
    for measure in (
        lambda: local_distributional_smoothness(Square(reentrant=True), x, eps=0.5, direction=direction),
        lambda: diagnose(Square(reentrant=True), x, VAT(0.5, direction=direction)),
    ):
        with pytest.raises(RuntimeError, match=r"use_reentrant=True cannot compute them: pass use_reentrant=False"):
            measure()


class Words(Square):
    """A network whose embedding is inside or outside a checkpoint."""

    def __init__(self, inside):
        super().__init__(reentrant=False)
        self.embedding, self.inside = nn.Embedding(20, 8).double(), inside

    def pooled(self, ids):
        return self.embedding(ids).tanh().mean(1)

    def forward(self, ids):
        return super().forward(checkpoint(self.pooled, ids, use_reentrant=False) if self.inside else self.pooled(ids))


def test_a_layer_whose_output_would_be_computed_again_is_refused():
    ids = torch.randint(20, (8, 5))
    inside, outside = Words(inside=True), Words(inside=False)
    with pytest.raises(ValueError, match=r"at=Embedding is inside torch.utils.checkpoint.*pass a layer outside of it"):
        VAT(0.5)(inside, ids, at=inside.embedding)
    assert not inside.embedding._forward_hooks
    assert VAT(0.5)(outside, ids, at=outside.embedding) > 0


class OwnGradient(nn.Module):
    """Its `forward` computes a gradient with respect to its own weights."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3).double()

    def forward(self, x):
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.linear(x).sum(), [self.linear.weight], create_graph=True)
        return self.linear(x) + g.mean()


def test_a_network_that_differentiates_by_its_own_weights_is_refused_in_a_sentence():
    with pytest.raises(RuntimeError, match=r"differentiates with respect to its own weights in forward, but they are constants here"):
        VAT(0.5)(OwnGradient(), rows(8, 8))


def test_exact_on_a_compiled_network_names_the_setting_that_it_needs(monkeypatch):
    import torch._functorch.config

    plain, x = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), rows(8, 8).float()
    torch._dynamo.reset()
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    with pytest.raises(RuntimeError, match=r"set torch\._functorch\.config\.donated_buffer = False before compiling"):
        VAT(0.5, direction="exact")(torch.compile(plain, backend="aot_eager"), x)
    torch._dynamo.reset()
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", False)
    vat = VAT(0.5, direction="exact", num_power_iterations=2)
    steps = (Step(network, x, key=KEY) for network in (torch.compile(plain, backend="aot_eager"), plain))
    torch.testing.assert_close(*map(vat.penalty, steps))
