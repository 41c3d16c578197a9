"""The Π-model: two noisy passes must agree."""

from torch import Tensor

from vat.functional import probabilities
from vat.regularizers.base import Regularizer
from vat.step import Step


class PiModel(Regularizer):
    """Mean squared difference of the class probabilities of two passes with different noise and augmentation.

    Laine and Aila, arXiv 1610.02242. The mean is also over the classes, and the gradient flows through both passes. Without dropout, noise
    and augmentation the penalty is 0. Cost: 3 F and a clean pass.

        >>> x = torch.randn(8, 4)
        >>> PiModel()(nn.Linear(4, 3), x).item()
        0.0
        >>> PiModel()(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), x).item() > 0
        True

    Args:
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
    """

    needs_view = True
    differentiates_clean_pass = True

    def penalty(self, step: Step) -> Tensor:
        """Mean squared difference between the two passes' probabilities."""
        other = step.network(step.inputs if step.view is None else step.view, noise="other view")
        difference = probabilities(step.clean.logits) - probabilities(other)
        return step.mean(step.mean_over_positions(difference.square().mean(1), step.clean.logits))
