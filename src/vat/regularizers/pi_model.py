"""The Π-model: agreement of two noisy passes."""

from torch import Tensor

from vat.functional import probabilities
from vat.regularizers.base import Regularizer
from vat.step import Step


class PiModel(Regularizer):
    """Mean squared difference of the class probabilities of two passes with different noise and augmentation.

    Laine and Aila, arXiv 1610.02242: the mean is over classes too, and the gradient flows through both passes. A network without dropout
    or noise, on inputs without augmentation, has a penalty of 0. 3 F and a clean pass.

        >>> x = torch.randn(8, 4)
        >>> PiModel()(nn.Linear(4, 3), x).item()
        0.0
        >>> PiModel()(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), x).item() > 0
        True

    Args:
        weight: factor of the penalty.
        ramp_up: optimizer steps over which the weight rises.
    """

    needs_view = True
    differentiates_clean_pass = True

    def penalty(self, step: Step) -> Tensor:
        """Mean squared difference between the two passes' probabilities."""
        other = step.network(step.inputs if step.view is None else step.view, noise="other view")
        difference = probabilities(step.clean.logits) - probabilities(other)
        return step.mean(step.mean_over_positions(difference.square().mean(1)))
