"""Ways to find r that the study of directions tries beside those of the package.

PYTHONPATH=scripts python src/train.py regularizer=vat vat._target_=mixtures.FreeGradient
"""

from typing import Any

import torch
from torch import Tensor

from vat import VAT
from vat.directions import finite_difference, gradient, hessian_product, margin, random, random_margin
from vat.step import Step


class HalfMargin(VAT):
    """The margin direction for half of the examples, drawn afresh, and the papers' power iteration for the others.

    Half of each would be 5.5 F; here both are computed for all.
    """

    def virtual_adversarial_perturbation(self, step: Step) -> Tensor:
        """See `VAT`."""
        first = (step.uniform("half") < 0.5).view(-1, *[1] * (step.x.dim() - 1))
        here = (step, self.divergence, self.norm)
        return self.current_eps * torch.where(first, margin(*here), finite_difference(*here))


class RandomMarginAscent(VAT):
    """The margin direction towards a random class, and one step of ascent from there, as long as ε. 7 F."""

    def virtual_adversarial_perturbation(self, step: Step) -> Tensor:
        """See `VAT`."""
        d = random_margin(step, self.divergence, self.norm)
        g = gradient(step, self.divergence, self.current_eps * d)
        return self.current_eps * self.norm.dual(d + self.norm.dual(g, otherwise=d), otherwise=d)


class Remembering(VAT):
    """VAT that keeps a direction for each example from one visit to the next; in one process."""

    def __init__(self, eps: float, **options: Any):
        super().__init__(eps, **options)
        self.memory = torch.zeros(0)

    def recall(self, step: Step) -> Tensor:
        """What was kept of these examples (N, …); a random direction where there is nothing."""
        assert step.index is not None, "a bare batch has no identity: hand its Step the index"
        missing = int(step.index.max()) + 1 - len(self.memory)
        if missing > 0:
            self.memory = torch.cat([self.memory.to(step.x).view(-1, *step.x.shape[1:]), step.x.new_zeros(missing, *step.x.shape[1:])])
        kept = self.memory[step.index]
        known = kept.flatten(1).any(1).view(-1, *[1] * (kept.dim() - 1))
        return torch.where(known, kept, random(step, self.divergence, self.norm))

    def keep(self, step: Step, d: Tensor) -> None:
        """Keep these directions."""
        self.memory[step.index] = d.detach()

    def get_extra_state(self) -> dict[str, Any]:
        """See `Regularizer`."""
        return {**super().get_extra_state(), "memory": self.memory}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `Regularizer`."""
        super().set_extra_state(state)
        self.memory = state["memory"]


class WarmStart(Remembering):
    """Power iteration that goes on from the direction of the last visit, so that a few visits make many iterations. 6 F."""

    def virtual_adversarial_perturbation(self, step: Step) -> Tensor:
        """See `VAT`."""
        d = self.recall(step)
        d = self.norm.dual(hessian_product(step, self.divergence, self.norm, d), otherwise=d)
        self.keep(step, d)
        return self.current_eps * d


class WarmStartEitherSign(WarmStart):
    """The same, with the sign of r drawn afresh at each visit: an eigenvector that is kept keeps its sign."""

    def virtual_adversarial_perturbation(self, step: Step) -> Tensor:
        """See `VAT`."""
        r = super().virtual_adversarial_perturbation(step)
        return torch.where((step.uniform("sign") < 0.5).view(-1, *[1] * (r.dim() - 1)), r, -r)


class FreeGradient(Remembering):
    """The gradient at r, which the loss's backward pass brings along, is the direction of the next visit. 4 F."""

    def virtual_adversarial_perturbation(self, step: Step) -> Tensor:
        """See `VAT`."""
        d = self.recall(step)
        r = (self.current_eps * d).requires_grad_()
        r.register_hook(lambda g: self.keep(step, self.norm.dual(g, otherwise=d)))
        return r
