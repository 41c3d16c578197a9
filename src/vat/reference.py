"""The complete method on one screen, for a reader who knows only torch. A test shows that `VAT` gives the same numbers.

`VAT` adds what a real network needs:

- the same dropout masks in all passes
- running statistics that do not change
- float32 for small differences that half precision would lose
- gradients that are zero or infinite
- other norms and divergences, masks, several processes

Miyato et al., arXiv 1507.00677 and 1704.03976.
"""

import torch
from torch import Tensor, nn


def vat_loss(model: nn.Module, x: Tensor, d: Tensor, *, eps: float, probe: float) -> Tensor:
    """VAT with the papers' direction, `VAT(eps, direction="finite_difference")`: a scalar to add to the loss. Cost: 6 passes.

        >>> model, x = nn.Linear(4, 3), torch.randn(8, 4)
        >>> loss = vat_loss(model, x, torch.randn(8, 4), eps=2.0, probe=1e-3)
        >>> loss.backward()

    Args:
        model: Network from inputs to logits (N, C).
        x: Inputs (N, …). Labels are not needed.
        d: Random numbers from a normal distribution, in the shape of `x`.
        eps: Length ‖r‖₂ of the perturbation r of each example, in the units of `x`.
        probe: Length of the step of the finite difference: about a thousandth of the length of an example.
    """
    with torch.no_grad():  # 1. The clean pass. The prediction must stay the same, so it is a constant.
        clean = model(x).log_softmax(1)
    # 2. The direction in which the prediction changes most. The divergence has its minimum at r = 0, so its gradient is zero there. After
    # a small step along d, the gradient is the Hessian's product with d: one step of the power iteration to the top eigenvector.
    r = (probe * unit(d)).requires_grad_()
    (g,) = torch.autograd.grad(divergence(clean, model(x + r)).sum(), r)
    r = eps * unit(g)
    # 3. The penalty: the change of the prediction. Only this pass trains the weights.
    return divergence(clean, model(x + r)).mean()


def vat_loss_towards(model: nn.Module, x: Tensor, towards: Tensor, *, eps: float) -> Tensor:
    """VAT with the default direction, `VAT(eps)`: towards the boundary to a random class that is not predicted. Cost: 5 passes.

        >>> model, x = nn.Linear(4, 3), torch.randn(8, 4)
        >>> other = (model(x).argmax(1) + torch.randint(1, 3, (8,))) % 3
        >>> loss = vat_loss_towards(model, x, other, eps=2.0)

    Args:
        model: Network from inputs to logits (N, C).
        x: Inputs (N, …).
        towards: Class (N,) for each example, drawn among the classes that are not predicted.
        eps: Length ‖r‖₂ of the perturbation r of each example, in the units of `x`.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    other = logits.gather(1, towards[:, None])[:, 0]
    (g,) = torch.autograd.grad((other - logits.max(1).values).sum(), x)
    return divergence(logits.detach().log_softmax(1), model(x.detach() + eps * unit(g))).mean()


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL[p ‖ q] (N,), from the log-probabilities of p and the logits of q, both (N, C)."""
    return (clean.exp() * (clean - logits.log_softmax(1))).sum(1)


def unit(r: Tensor) -> Tensor:
    """Divide each example of `r` (N, …) by its length."""
    return r / r.flatten(1).norm(dim=1).view(-1, *[1] * (r.dim() - 1))
