"""VAT along the margin's gradient in a few lines of plain code, to compare any network with."""

import copy
import random
import warnings

import numpy as np
import torch
from networks import rows
from torch import Tensor, nn

from vat import VAT
from vat.step import Key, Step

EPS = 0.5
KEY = Key(3)


def embedded(make, ids, *rest, **options):
    """Options that put r on the words' embeddings."""
    return make, (ids, *rest), lambda m, x: m.rest(x, *rest), {"at": "embedding", "mask": None, **options}


def made(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that lazy layers are new and that norms by hooks are old
        torch.manual_seed(0)
        model = make().double()
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        torch.manual_seed(0)
        model(rows(5, 6))  # creates lazy layers
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.reset_running_stats()
    return model


def by_hand(make, batch, output, at=None, mask=None, output_mask=None, class_dim=None):
    """The penalty along the margin's gradient. Every pass uses a new network and draws the same noise.

    `at` may also be a function from the network to a layer, whose input is the batch's first part.
    """
    output = output or (lambda m, x: m(x))

    def logits(model, x):
        seed = KEY.own("network")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        z = output(model, x.clone())
        return z if class_dim is None else z.movedim(class_dim, 1)

    def mean(value):
        if value.dim() == 1:
            return value
        known = mask if output_mask is None else output_mask
        counts = torch.ones_like(value) if known is None else (known if known.dim() == value.dim() else known[:, 0]).to(value)
        return (value * counts).flatten(1).sum(1) / counts.flatten(1).sum(1)

    def inputs(model):
        if at == "embedding":
            return model.embedding(batch[0])
        if callable(at):
            return at(model)(batch[0])
        if at is not None:
            return batch[at]
        return torch.cat(batch, 1) if isinstance(batch, tuple) else batch

    x = inputs(made(make)).detach().requires_grad_()
    clean = logits(made(make), x)
    top = clean.topk(2, dim=1).values
    (g,) = torch.autograd.grad(mean(top[:, 1] - top[:, 0]).sum(), x)
    if mask is not None:
        g = g * (mask if mask.dim() == g.dim() else mask[..., None])
    r = EPS * g / g.flatten(1).norm(dim=1).view(-1, *[1] * (g.dim() - 1))
    model = made(make)
    p, q = clean.detach().log_softmax(1), logits(model, inputs(model) + r).log_softmax(1)
    penalty = mean((p.exp() * (p - q)).sum(1)).mean()
    penalty.backward()
    return penalty.detach(), [p.grad for p in model.parameters()]


def check(make, batch, output, options):
    """Compare the term and its gradient with `by_hand`, and the state and the generators with those before the term."""
    model = made(make)
    state = {name: value.clone() for name, value in (*model.named_buffers(), *model.named_parameters())}
    kept = {name: copy.copy(value) for name, value in vars(model).items() if name not in vars(nn.Module())}
    at = options.get("at")
    place = model.embedding if at == "embedding" else at(model) if callable(at) else at
    generators = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    step = Step(model, batch, key=KEY, **{**options, "at": place})
    vat = VAT(EPS, direction="margin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term = vat.term(step)
        vat.first_call(step)
    term.backward()
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), repr(np.random.get_state())) == generators[1:]
    assert all(torch.equal(value, state[name]) for name, value in (*model.named_buffers(), *model.named_parameters()))
    assert all(vars(model)[name] == value for name, value in kept.items() if not isinstance(value, Tensor))
    wanted, gradients = by_hand(make, batch, output, **options)
    torch.testing.assert_close(term.detach(), wanted, rtol=1e-8, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(
            zero if parameter.grad is None else parameter.grad, zero if gradient is None else gradient, rtol=1e-6, atol=1e-11
        )
