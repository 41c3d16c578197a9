"""Further kinds of networks, most with noise or state of their own, compared with a few lines of code by hand as in test_architectures."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import KEY, check, embedded
from networks import rows
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from vat import VAT
from vat.calls import Call
from vat.step import Step

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [1, 2, 3, 4, 5, 6, 0, 3, 6]])
IDS = torch.randint(1, 9, (4, 5), generator=torch.Generator().manual_seed(0))
WORDS = (torch.arange(5) < torch.tensor([5, 2, 3, 4])[:, None]).long()


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.cls, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.body = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        return self.head(self.body(torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions)[:, 0])


class Swin(nn.Module):
    """Attention in windows of 2 × 2, which the second call shifts."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.bias = nn.Conv2d(3, 8, 1), nn.Linear(8, 4), nn.Parameter(torch.randn(4, 4))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def windows(self, x, shift):
        n, h, w, c = x.shape
        x = x.roll((-shift, -shift), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        x = x + self.attention(x, x, x, attn_mask=self.bias, need_weights=False)[0]
        return x.view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c).roll((shift, shift), (1, 2))

    def forward(self, x):
        return self.head(self.windows(self.windows(self.stem(x).movedim(1, -1), 0), 1).mean((1, 2)))


class ConvNeXt(nn.Module):
    """Layer scale and stochastic depth."""

    def __init__(self):
        super().__init__()
        self.spatial, self.norm, self.mlp = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.LayerNorm(3), nn.Linear(3, 3)
        self.scale, self.head = nn.Parameter(torch.full((3,), 0.1)), nn.Linear(3, 4)

    def forward(self, x):
        y = self.scale * F.gelu(self.mlp(self.norm(self.spatial(x).movedim(1, -1))))
        x = x + y.movedim(-1, 1) * torch.empty(len(x), 1, 1, 1, dtype=x.dtype).bernoulli_(0.7) / 0.7
        return self.head(x.mean((2, 3)))


class PointNet(nn.Module):
    """Turns its input by a matrix (T-Net), whose regularisation term it keeps."""

    def __init__(self):
        super().__init__()
        self.turn, self.body, self.head = (
            nn.Conv1d(3, 9, 1),
            nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.Tanh()),
            nn.Linear(8, 4),
        )
        self.loss = None

    def forward(self, x):
        turn = self.turn(x).amax(2).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        self.loss = (turn @ turn.mT).square().mean()
        return self.head(self.body(turn @ x).amax(2))


class Film(nn.Module):
    """An image, modulated by a condition."""

    def __init__(self):
        super().__init__()
        self.image, self.condition, self.head = nn.Conv2d(1, 4, 3), nn.Linear(3, 8), nn.Linear(4, 3)

    def forward(self, x, condition):
        scale, shift = self.condition(condition)[..., None, None].chunk(2, 1)
        return self.head((self.image(x) * (1 + scale) + shift).tanh().mean((2, 3)))


class ImageAndWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.image, self.head = nn.Embedding(9, 6), nn.Conv2d(1, 6, 3), nn.Linear(12, 3)

    def forward(self, image, words, mask):
        return self.rest(self.embedding(words), image, mask)

    def rest(self, x, image, mask):
        x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(torch.cat([x, self.image(image).tanh().mean((2, 3))], 1))


class Attention(nn.Module):
    """A graph attention network with dropout of its edges."""

    def __init__(self):
        super().__init__()
        self.first, self.score, self.head = nn.Linear(5, 8), nn.Linear(16, 1), nn.Linear(8, 3)

    def forward(self, x, edges):
        h, (source, target) = self.first(x), edges
        weights = F.dropout(F.leaky_relu(self.score(torch.cat([h[source], h[target]], 1))).exp(), 0.2, self.training)
        return self.head(h + torch.zeros_like(h).index_add(0, target, h[source] * weights).tanh())


class Scan(nn.Module):
    """A selective state space, as in Mamba."""

    def __init__(self):
        super().__init__()
        self.inner, self.steps, self.both, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(8, 5)
        self.decay = nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        u = self.inner(x)
        (b, c), dt = self.both(u).chunk(2, -1), F.softplus(self.steps(u))
        state, total = torch.zeros(len(u), 8, 3, dtype=x.dtype), 0
        for t in range(u.shape[1]):
            state = state * (-dt[:, t, :, None] * self.decay.exp()).exp() + (dt * u)[:, t, :, None] * b[:, t, None]
            total = total + (state * c[:, t, None]).sum(-1)
        return self.head(total)


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = (
            nn.ModuleList(parametrizations.weight_norm(nn.Conv1d(4, 4, 2, dilation=d)) for d in (1, 2)),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(F.dropout(F.pad(x, (layer.dilation[0], 0)), 0.2, self.training)).tanh()
        return self.head(x[..., -1])


class NoisyExperts(nn.Module):
    """Sends each row to the two best of four experts, by scores with noise, and counts them."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.Linear(6, 20)
        self.register_buffer("counts", torch.zeros(4))

    def forward(self, x):
        scores = self.gate(x)
        values, chosen = (scores + torch.randn_like(scores)).topk(2, 1)
        self.counts += F.one_hot(chosen, 4).sum((0, 1))
        outputs = self.experts(x).view(-1, 4, 5)
        return (outputs.gather(1, chosen[..., None].expand(-1, -1, 5)) * values.softmax(1)[..., None]).sum(1)


class Renorm(nn.Module):
    """Batch renormalisation: moving statistics, one changed in place and one replaced, enter the output."""

    def __init__(self):
        super().__init__()
        self.layer, self.steps = nn.Linear(6, 3), 0
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("std", torch.ones(6))

    def forward(self, x):
        mean, std = x.mean(0), x.std(0)
        y = (x - mean) / std * (std / self.std).detach() + ((mean - self.mean) / self.std).detach()
        self.mean.lerp_(mean.detach(), 0.1)
        self.std, self.steps = self.std.lerp(std.detach(), 0.1), self.steps + 1
        return self.layer(y)


class Codebook(nn.Module):
    """Vector quantisation with a straight-through gradient; its codes follow the inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("codes", torch.randn(5, 4))

    def forward(self, x):
        z = self.first(x)
        nearest = torch.cdist(z.detach(), self.codes).argmin(1)
        code = self.codes[nearest]
        self.codes.index_add_(0, nearest, 0.1 * (z.detach() - code))
        return self.head(z + (code - z).detach())


class RandomDepth(nn.Module):
    """Draws from Python and numpy."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.zeros(len(x), 8, dtype=x.dtype)
        for _ in range(6):
            h = self.cell(x, h) if random.random() < 0.5 else h + 0.1 * np.random.randn()
        return self.head(h)


class Bayes(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return F.linear(x, self.mean + self.log_std.exp() * torch.randn_like(self.mean))


class Energy(nn.Module):
    """Computes with its own gradient, for which it sets `requires_grad` of its input, as force fields do."""

    def __init__(self):
        super().__init__()
        self.energy, self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(6, 3)

    def forward(self, x):
        with torch.enable_grad():
            x.requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return self.head(x - force)


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.register_buffer("support", torch.randn(5, 6))

    def forward(self, x):
        return -(self.body(x)[:, None] - self.body(self.support)).square().sum(-1)


class Signal(nn.Module):
    """A series (N, T) without a dimension of features -> classes at each time (N, T, C)."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.GRU(1, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x[..., None])[0])


class Bag(nn.Module):
    """Numbers and bags of categories, as in a recommender."""

    def __init__(self):
        super().__init__()
        self.embedding, self.numbers, self.head = nn.EmbeddingBag(9, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, ids, numbers):
        return self.rest(self.embedding(ids), numbers)

    def rest(self, x, numbers):
        return self.head(torch.cat([x, self.numbers(numbers)], 1).tanh())


def hooked():
    """Hooks that count and keep outputs in the whole network, and that change an output."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model.calls, model.outputs = 0, []

    def count(layer, inputs, output):
        model.calls += 1
        model.outputs.append(output.detach())

    model[0].register_forward_hook(count)
    model[1].register_forward_hook(lambda layer, inputs, output: output * 2)
    return model


X, IMAGES, NUMBERS = rows(5, 6), rows(4, 1, 5, 5), rows(4, 3)
SERIES = rows(4, 5)

KINDS = {
    "vit": (ViT, rows(4, 3, 8, 8), None, {}),
    "swin": (Swin, rows(3, 3, 4, 4), None, {}),
    "convnext": (ConvNeXt, rows(5, 3, 4, 4), None, {}),
    "pointnet": (PointNet, rows(5, 3, 9), None, {}),
    "film": (Film, (IMAGES, NUMBERS), lambda m, x: m(x, NUMBERS), {"at": 0}),
    "image and words, image": (ImageAndWords, (IMAGES, IDS, WORDS), lambda m, x: m(x, IDS, WORDS), {"at": 0}),
    "graph attention": (Attention, Call(rows(7, 5), EDGES), lambda m, x: m(x, EDGES), {"at": 0}),
    "scan": (Scan, rows(3, 7, 4), None, {}),
    "tcn": (TCN, rows(3, 4, 8), None, {}),
    "experts, noisy": (NoisyExperts, X, None, {}),
    "renorm": (Renorm, X, None, {}),
    "codebook": (Codebook, X, None, {}),
    "random depth": (RandomDepth, X, None, {}),
    "bayes": (Bayes, X, None, {}),
    "energy": (Energy, X, None, {}),
    "prototypes": (Prototypes, X, None, {}),
    "signal, padded": (Signal, SERIES * WORDS, None, {"mask": WORDS, "class_dim": -1}),
    "hooks": (hooked, X, None, {}),
    "recommender": embedded(Bag, IDS, NUMBERS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_term_gradient_and_state_are_those_of_code_written_by_hand(kind):
    check(*KINDS[kind])


def test_weights_passed_by_functional_call_give_the_term_and_gradient_of_the_module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    weights = dict(model.named_parameters())
    found = []
    for forward, module in ((model, None), (lambda x: torch.func.functional_call(model, weights, (x,)), model)):
        term = VAT(0.5).term(Step(forward, X, module=module, key=KEY))
        found.append([term.detach(), *torch.autograd.grad(term, [*weights.values()])])
    for wanted, value in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted)


# ---------------------------------------------------------------------------------------- what cannot work says so in a sentence


class ModelOutput(dict[str, Tensor]):
    """Like the class of transformers, which is recognised by its name."""


class EncoderDecoder(nn.Module):
    """Like a T5: `shared` is not called, but two layers with its weight are. Inputs and outputs may have as many positions."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.encoder, self.decoder = nn.ModuleDict({"words": nn.Embedding(9, 4)}), nn.ModuleDict({"words": nn.Embedding(9, 4)})
        self.encoder["words"].weight = self.decoder["words"].weight = self.shared.weight

    def forward(self, ids, decoder_ids, mask):
        read = (self.encoder["words"](ids) * mask[..., None]).mean(1, keepdim=True)
        logits = self.head((self.decoder["words"](decoder_ids) + read).tanh())
        return ModelOutput(logits=logits, encoder_last_hidden_state=read)


def test_a_mask_of_an_encoders_inputs_is_never_taken_for_that_of_the_decoders_outputs():
    torch.manual_seed(0)
    model, known, batch = EncoderDecoder().double(), WORDS.flip(0), (IDS, IDS, WORDS)
    with pytest.raises(ValueError, match=r"the outputs are a decoder's, .* pass output_mask=…, too"):
        VAT(0.5)(model, batch, at=model.encoder["words"], mask=WORDS)
    check(
        EncoderDecoder,
        batch,
        lambda m, x: m.head((m.decoder["words"](IDS) + (x * WORDS[..., None]).mean(1, keepdim=True)).tanh()),
        {"at": lambda m: m.encoder["words"], "mask": WORDS, "output_mask": known, "class_dim": -1},
    )


def test_a_layer_that_is_not_called_once_gives_the_names_of_others():
    model = EncoderDecoder()
    for layer, names in ((model.shared, "encoder.words, decoder.words$"), (nn.Linear(2, 2), "encoder.words, decoder.words, head$")):
        with pytest.raises(ValueError, match=f"is not called in a pass of the network: pass a layer that is called once, as {names}"):
            VAT(0.5)(model, (IDS, IDS, WORDS), at=layer, output_mask=WORDS)
    model.decoder["words"] = model.encoder["words"]
    with pytest.raises(ValueError, match=r"must be called once in a pass, got 2 calls: pass a layer that is called once, as head$"):
        VAT(0.5)(model, (IDS, IDS, WORDS), at=model.encoder["words"], output_mask=WORDS)


class Leaf(nn.Module):
    """Sets `requires_grad` of a view of its input, as the feature encoder of wav2vec 2.0 does in training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        x = x[:, None]
        x.requires_grad = True
        return self.layer(x[:, 0])


def test_a_network_that_sets_requires_grad_of_a_computed_tensor_is_refused_in_a_sentence():
    with pytest.raises(RuntimeError, match=r"The network sets requires_grad on what it computed .*perturb a later layer with at="):
        VAT(0.5)(Leaf().double(), X)


@pytest.mark.parametrize(
    ("forward", "batch", "error", "message"),
    [
        (lambda x: {"out": x, "aux": x}, X, TypeError, r"got a dict: .*vat\(lambda x: model\(x\)\['out'\], x, module=model\)"),
        (lambda x: x.transpose(0, 1), rows(4, 9, 3), ValueError, r"got \(4, 9, 3\) and \(9, 4, 3\): pass a function that returns outputs"),
        (lambda x: x[:2], X, ValueError, r"or group=… if several rows share an output, as the nodes of a graph do"),
        (lambda ids, x: x, (IDS, NUMBERS), TypeError, r"got torch.int64: .*an argument, as vat\(model, batch, at=1\)"),
        (lambda ids: ids, (IDS,), TypeError, r"name what can be perturbed: a layer's output, as vat\(model, batch, at=model.get"),
    ],
)
def test_what_does_not_fit_gives_the_call_that_does(forward, batch, error, message):
    with pytest.raises(error, match=message):
        VAT(0.5)(forward, batch, module=())
