"""Entropy minimisation."""

from torch import Tensor

from vat.functional import entropy_of_positions
from vat.regularizers.base import Regularizer
from vat.step import Step


class Entropy(Regularizer):
    """Mean entropy of the predictions, with its gradient (Grandvalet and Bengio, 2005): TPAMI's "+ EntMin". For softmax outputs only.

        >>> certain, undecided = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> [round(Entropy()(nn.Identity(), logits).item(), 3) for logits in (certain, undecided)]
        [0.001, 0.693]

    Args:
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
    """

    differentiates_clean_pass = True

    def penalty(self, step: Step) -> Tensor:
        """Mean entropy of the clean predictions, in nats."""
        logits = step.clean.logits
        return step.mean(step.mean_over_positions(entropy_of_positions(logits), logits))
