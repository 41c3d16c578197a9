"""A dozen kinds of networks: the term, its gradient and the unchanged state, compared with a few lines of code by hand."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from by_hand import check, embedded, made
from networks import rows
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from vat import VAT
from vat.calls import Call

IDS = torch.randint(1, 20, (4, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([9, 5, 3, 7])
MASK = (torch.arange(9) < LENGTHS[:, None]).long()
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2], [1, 2, 3, 4, 5, 6, 0, 3, 6]])
VOID = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.3


def layer(width):
    return nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)


class Words(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(20, width), layer(width), nn.Linear(width, 4)

    def forward(self, ids, *rest):
        return self.rest(self.embedding(ids), *rest)


class Encoder(Words):
    def rest(self, x, mask):
        x = self.body(x, src_key_padding_mask=mask == 0)
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Decoder(Words):
    """Predicts the next word; head and embedding share their weights."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def rest(self, x):
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.body(x, src_mask=causal, is_causal=True))


class Packed(Words):
    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

    def rest(self, x, lengths):
        _, (h, _) = self.body(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return self.head(torch.cat([h[0], h[1]], 1))


class Graph(nn.Module):
    """Each node is an example."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, edges):
        x = self.first(x).tanh()
        return self.second(x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


class Points(nn.Module):
    def __init__(self, pooled=True):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.Tanh(), nn.Conv1d(8, 4, 1))
        self.pooled = pooled

    def forward(self, x):
        x = self.body(x.transpose(1, 2))
        return x.amax(2) if self.pooled else x


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.norm(self.down(x)).relu()
        return self.out(torch.cat([x, self.up(self.deep(nn.functional.max_pool2d(x, 2)).relu())], 1))


class Table(Words):
    """Columns of categories and of numbers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(4 * 8 + 3, 8), nn.GELU(), nn.Linear(8, 3))

    def rest(self, x, numbers):
        return self.head(torch.cat([self.body(x).flatten(1), numbers], 1))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(16, 3)

    def forward(self, a, b):
        return self.head(torch.cat([self.encoder(a), self.encoder(b)], 1))


class Experts(nn.Module):
    """Keeps its auxiliary losses, counts and loads."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 3), nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.losses, self.loss, self.counts = [], None, {"calls": 0}
        self.register_buffer("load", torch.zeros(3))

    def forward(self, x):
        weights = self.gate(x).softmax(1)
        self.losses.append(weights.mean(0).square().sum())
        self.loss, self.load = self.losses[-1], 0.9 * self.load
        self.load += weights.detach().mean(0)
        self.counts["calls"] += 1
        return (weights[..., None] * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)


class Stateful(nn.Module):
    """Starts from the last batch's state."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.state = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3), None

    def forward(self, x):
        outputs, state = self.body(x, self.state)
        self.state = state.detach()
        return self.head(outputs[:, -1])


class Spectrum(nn.Module):
    """Computes with complex numbers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.fft.rfft(x).abs())


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, 4), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


@dataclass
class Output:
    logits: Tensor
    loss: float = 0.0


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


def two(first, second=lambda layer: layer):
    return lambda: nn.Sequential(first(nn.Linear(6, 8)), nn.Tanh(), second(nn.Linear(8, 3)))


X = rows(5, 6)
PAIR = (rows(4, 6), rows(4, 6).flip(0))
NUMBERS = rows(4, 3)

# the network, the batch, its output by hand as a function of what is perturbed, and options
KINDS = {
    "encoder, padded": embedded(Encoder, IDS, MASK, mask=MASK),
    "decoder, causal": embedded(Decoder, IDS, mask=MASK, class_dim=-1),
    "lstm, packed": embedded(Packed, IDS, LENGTHS, mask=MASK),
    "graph": (Graph, Call(rows(7, 5), EDGES), lambda m, x: m(x, EDGES), {"at": 0}),
    "points": (Points, rows(5, 11, 3), None, {}),
    "points, each": (lambda: Points(pooled=False), rows(5, 11, 3), None, {"class_dim": 1}),
    "conv, 3-D": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3)),
        rows(3, 1, 5, 5, 5),
        None,
        {},
    ),
    "u-net": (UNet, rows(3, 2, 6, 6), None, {}),
    "u-net, void": (UNet, rows(3, 2, 6, 6), None, {"mask": VOID}),
    "table, categories": embedded(Table, IDS[:, :4], NUMBERS),
    "table, numbers": (Table, (IDS[:, :4], NUMBERS), lambda m, x: m(IDS[:, :4], x), {"at": 1}),
    "siamese, both": (Siamese, PAIR, lambda m, x: m(*x.split(6, 1)), {}),
    "siamese, one": (Siamese, PAIR, lambda m, x: m(PAIR[0], x), {"at": 1}),
    "experts": (Experts, X, None, {}),
    "stateful": (Stateful, rows(5, 4, 6), None, {}),
    "spectrum": (Spectrum, X, None, {}),
    "dict": (lambda: Returns(lambda z: {"logits": z, "loss": None}), X, lambda m, x: m.layer(x), {}),
    "dataclass": (lambda: Returns(Output), X, lambda m, x: m.layer(x), {}),
    "named tuple": (lambda: Returns(lambda z: Pair(z, z)), X, lambda m, x: m.layer(x), {}),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3)), X, None, {}),
    "weight norm": (two(parametrizations.weight_norm, parametrizations.weight_norm), X, None, {}),
    "spectral norm": (two(parametrizations.spectral_norm, parametrizations.spectral_norm), X, None, {}),
    "spectral norm, by hooks": (two(nn.utils.spectral_norm), X, None, {}),
    "weight norm, by hooks": (two(nn.utils.weight_norm), X, None, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_term_gradient_and_state_are_those_of_code_written_by_hand(kind):
    check(*KINDS[kind])


@pytest.mark.parametrize(
    ("make", "batch", "options", "message"),
    [
        (lambda: Returns(lambda z: (z, z)), X, {}, "must return logits, got a tuple: pass a function that selects them"),
        (lambda: Returns(lambda z: {"out": z}), X, {}, "must return logits, got a dict"),
        (Spectrum, X.to(torch.complex128), {}, r"got torch.complex128\. .*for complex numbers torch.view_as_real\(x\)"),
        (Siamese, (PAIR[0], PAIR[1].to(torch.complex128)), {}, "the argument 1 must be a tensor of a floating dtype, got torch.complex128"),
        (Siamese, (PAIR[0], PAIR[1].long()), {}, "the argument 1 must be a tensor of a floating dtype, got torch.int64"),
    ],
)
def test_outputs_that_are_not_logits_and_integer_inputs_are_refused_in_a_sentence(make, batch, options, message):
    with pytest.raises(TypeError, match=message):
        VAT(0.5)(made(make), batch, **options)
