"""The whole method on one screen, for a reader who knows only torch. A test shows that `VAT` gives the same numbers.

`VAT` adds what a real network needs: the same dropout masks in all passes, running statistics that stay as they are, float32 where half
precision would lose a small difference, gradients that are zero or infinite, other norms and divergences, masks, several processes.

Miyato et al., arXiv 1507.00677 and 1704.03976.
"""

import torch
from torch import Tensor, nn


def vat_loss(model: nn.Module, x: Tensor, d: Tensor, *, eps: float, probe: float) -> Tensor:
    """VAT with the papers' direction, `VAT(eps, direction="finite_difference")`: a scalar to add to the loss. 6 passes.

        >>> model, x = nn.Linear(4, 3), torch.randn(8, 4)
        >>> loss = vat_loss(model, x, torch.randn(8, 4), eps=2.0, probe=1e-3)
        >>> loss.backward()

    Args:
        model: x -> logits (N, C).
        x: inputs (N, …); labels are not needed.
        d: random numbers from a normal distribution, shaped like x.
        eps: length ‖r‖₂ of the perturbation r of each example.
        probe: length of the step of the finite difference: about a thousandth of the length of an example.
    """
    with torch.no_grad():  # 1. The clean pass: the prediction that is to stay the same is a constant.
        clean = model(x).log_softmax(1)
    # 2. The direction in which the prediction changes most. At r = 0 the divergence is least, so its gradient is zero there, and the
    # gradient a small step along d away is the Hessian's product with d: one step of the power iteration to its top eigenvector.
    r = (probe * unit(d)).requires_grad_()
    (g,) = torch.autograd.grad(divergence(clean, model(x + r)).sum(), r)
    r = eps * unit(g)
    # 3. The penalty: how far the prediction moves. Only this pass trains the weights.
    return divergence(clean, model(x + r)).mean()


def vat_loss_towards(model: nn.Module, x: Tensor, towards: Tensor, *, eps: float) -> Tensor:
    """VAT with the default direction, `VAT(eps)`: towards the boundary to a class, drawn among those not predicted. 5 passes.

        >>> model, x = nn.Linear(4, 3), torch.randn(8, 4)
        >>> other = (model(x).argmax(1) + torch.randint(1, 3, (8,))) % 3
        >>> loss = vat_loss_towards(model, x, other, eps=2.0)

    Args:
        model: x -> logits (N, C).
        x: inputs (N, …).
        towards: class (N,) for each example.
        eps: length ‖r‖₂ of the perturbation r of each example.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    other = logits.gather(1, towards[:, None])[:, 0]
    (g,) = torch.autograd.grad((other - logits.max(1).values).sum(), x)
    return divergence(logits.detach().log_softmax(1), model(x.detach() + eps * unit(g))).mean()


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL[p ‖ q] (N,) from the log-probabilities of p and the logits of q, both (N, C)."""
    return (clean.exp() * (clean - logits.log_softmax(1))).sum(1)


def unit(r: Tensor) -> Tensor:
    """`r` (N, …), each example divided by its length."""
    return r / r.flatten(1).norm(dim=1).view(-1, *[1] * (r.dim() - 1))
