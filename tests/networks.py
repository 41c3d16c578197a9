"""Small networks and rows that many tests use."""

import torch
from torch import nn


def network(inputs=5, hidden=8, outputs=3, *, norm=False, dropout=None, dtype=torch.float64):
    """A smooth perceptron, the same at every call."""
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(hidden)] if norm else []
    noise = [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(nn.Linear(inputs, hidden), *middle, nn.Tanh(), *noise, nn.Linear(hidden, outputs)).to(dtype)


def rows(n=6, *shape, seed=1, dtype=torch.float64):
    """Normal rows (n, 5) or (n, *shape), the same at every call."""
    return torch.randn(n, *(shape or (5,)), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed=0):
    """A generator with a seed."""
    return torch.Generator().manual_seed(seed)


def parameters(module):
    """Number of a module's parameters."""
    return sum(p.numel() for p in module.parameters())


class ReassigningCounter(nn.Module):
    """Replaces its buffer with a new tensor instead of changing it in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x
