"""VAT as other implementations compute it, for comparison."""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from vat.functional import Categorical, entropy
from vat.norms import L2
from vat.regularizers.base import Regularizer, not_negative
from vat.step import Step


class PublishedVAT(Regularizer):
    """VAT as in the authors' Chainer code (arXiv 1704.03976), with options for the choices of its ports. It shows what a choice costs.

    It has finite differences, and new dropout masks in each pass. (The authors' TensorFlow code draws the masks from one seed, as this
    project does.) It works with L2 and softmax outputs. It is written from descriptions. Cost: 6 F.

    Args:
        eps: Radius ε of the perturbation, in the units of `x`.
        xi: Length of the finite differences' probe, in the units of `x`.
        num_power_iterations: Number of power iterations.
        reverse_kl: Whether to use KL[p(y|x + r) ‖ p(y|x)] instead of KL[p(y|x) ‖ p(y|x + r)].
        move_statistics: Whether every pass updates the running statistics of batch norm, as an ordinary call does.
        adversarial_entropy: Weight of the entropy of the perturbed predictions in the penalty.
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
    """

    def __init__(
        self,
        eps: float,
        *,
        xi: float = 1e-6,
        num_power_iterations: int = 1,
        reverse_kl: bool = False,
        move_statistics: bool = False,
        adversarial_entropy: float = 0.0,
        weight: float = 1.0,
        ramp_up: int = 0,
    ):
        super().__init__(weight=weight, ramp_up=ramp_up)
        self.eps = not_negative("eps", eps)
        self.xi = not_negative("xi", xi)
        self.num_power_iterations = int(not_negative("num_power_iterations", num_power_iterations))
        self.reverse_kl = reverse_kl
        self.move_statistics = move_statistics
        self.adversarial_entropy = not_negative("adversarial_entropy", adversarial_entropy)

    def penalty(self, step: Step) -> Tensor:
        """Mean divergence of the perturbed from the clean prediction, plus the weighted entropy of the perturbed predictions."""
        if step.mask is not None or step.group is not None or step.mask_of(step.target) is not None:
            raise ValueError("PublishedVAT does not support a mask or groups: use VAT")
        network = self._passes(step)
        with torch.no_grad():
            clean = network(step.x)
        d = L2().sample(step.normal("direction")).to(step.x.dtype)
        for _ in range(self.num_power_iterations):
            with torch.enable_grad():
                r = (self.xi * d).requires_grad_()
                (g,) = torch.autograd.grad(self._kl(clean, network(step.x + r)).sum(), r)
            d = L2().dual(g, otherwise=d)
        perturbed = network(step.inputs + self.eps * d)
        penalty = step.mean(self._kl(clean, perturbed))
        return penalty + self.adversarial_entropy * step.mean(entropy(perturbed)) if self.adversarial_entropy else penalty

    def _kl(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        return Categorical()(perturbed, clean) if self.reverse_kl else Categorical()(clean, perturbed)

    def _passes(self, step: Step) -> Callable[[Tensor], Tensor]:
        """The network with different noise in every call."""
        numbers = count()
        return lambda x: step.network(x, noise=f"pass {next(numbers)}", track=self.move_statistics)
