"""Adversarial training, which needs labels."""

import torch
from torch import Tensor

from vat.directions import pulled_back
from vat.functional import NO_LABEL, by_name, cross_entropy, wide
from vat.norms import NORMS, Norm
from vat.regularizers.base import Regularizer, not_negative
from vat.step import Step


class Adversarial(Regularizer):
    """Cross entropy at the first-order adversarial example of each labelled input (Goodfellow et al., arXiv 1412.6572).

    r maximises the linearised loss within ‖r‖ ≤ ε: ε g / ‖g‖₂ in L2, ε sign(g) in L∞, with g = ∇ₓ of the cross entropy. No gradient flows
    through r. Cost: 4 F and a clean pass.

        >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> bool(Adversarial(eps=1.0)(model, x, y) > F.cross_entropy(model(x), y))
        True

    Args:
        eps: Radius ε of the perturbation, in the units of `x`.
        norm: Norm of r: "l2", "linf", or a `vat.norms.Norm`.
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
    """

    needs_labels = True

    def __init__(self, eps: float, *, norm: str | Norm = "l2", weight: float = 1.0, ramp_up: int = 0):
        super().__init__(weight=weight, ramp_up=ramp_up)
        self.eps = not_negative("eps", eps)
        self.norm = by_name("norm", NORMS, norm)

    def penalty(self, step: Step) -> Tensor:
        """Cross entropy of the perturbed inputs."""
        if step.y is None:
            raise ValueError("Adversarial needs labels, got none: call it as regularizer(model, x, y)")
        clean = step.clean
        y = self._counted(step, step.y)
        with torch.enable_grad():
            logits = wide(clean.logits.detach()).requires_grad_()
            (u,) = torch.autograd.grad(cross_entropy(logits, y), logits)
        g = pulled_back(step, clean.logits, clean.x, u, retain_graph=step.live)
        norm = step.norm(self.norm)
        d = norm.dual(g, otherwise=norm.sample(step.normal("direction", one_row=True)))
        return cross_entropy(step.network(step.inputs + step.radius(self.eps) * d), y)

    @staticmethod
    def _counted(step: Step, y: Tensor) -> Tensor:
        """The labels, with torch's mark for none where the mask of the step says that an output does not count."""
        mask = step.mask_of(step.clean.logits, of_decisions=True)
        counted = step.counted if mask is None or y.dim() == 1 else mask[:, 0]
        return y if counted is None or len(counted) != len(y) else torch.where(counted, y, NO_LABEL)
