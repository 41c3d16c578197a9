"""Class balance: the mean prediction of a batch follows the known class frequencies."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vat.functional import as_classes
from vat.regularizers.base import Regularizer, not_negative
from vat.step import Step


class ClassBalance(Regularizer):
    """KL[p̄ ‖ prior] of the batch's mean prediction p̄ from known class frequencies. For softmax outputs only.

    With few labels, VAT can put a boundary into the wrong gap: two classes become one (MNIST's 4 and 9), but the loss is as low as for a
    perfect boundary. The merged class then has twice its share of the predictions, and this term penalises that. It is the balance term
    of the clustering by VAT and mutual information of Hu et al. (arXiv 1702.08720).

    With N examples in the batch of a process, the penalty of perfect predictions is about (C - 1) / 2N, not 0. Frequencies that differ
    from those of the data cost accuracy. Use `fade_out` to remove the term once the classes are separated.

        >>> one_class, balanced = torch.tensor([[20.0, 0.0], [20.0, 0.0]]), torch.tensor([[20.0, 0.0], [0.0, 20.0]])
        >>> [round(ClassBalance()(nn.Identity(), logits).item(), 3) for logits in (one_class, balanced)]
        [0.693, 0.0]

    Args:
        prior: Frequency of each class, up to a common factor, each > 0. None: all classes are equally frequent.
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
        fade_out: Optimizer step at which the weight has decreased linearly to 0; it stays 0. With 0, the weight does not decrease.

    Raises:
        ValueError: If a frequency is not a finite number > 0, or (raised at the first step) their number is not the number of classes.
    """

    differentiates_clean_pass = True
    prior: Tensor | None

    def __init__(self, *, prior: Sequence[float] | None = None, weight: float = 1.0, ramp_up: int = 0, fade_out: int = 0):
        super().__init__(weight=weight, ramp_up=ramp_up)
        self.fade_out = int(not_negative("fade_out", fade_out))
        if prior is not None and not all(0 < share < float("inf") for share in prior):
            raise ValueError(f"prior must hold a finite number > 0 for each class, got {list(prior)}")
        shares = None if prior is None else torch.tensor(prior) / sum(prior)
        self.register_buffer("prior", shares, persistent=False)  # a buffer moves to the device once, not in every step

    @property
    def current_weight(self) -> float:
        """Weight at the current step of the run."""
        faded = min(1.0, self.num_updates / self.fade_out) if self.fade_out else 0.0
        return super().current_weight * (1 - faded)

    def penalty(self, step: Step) -> Tensor:
        """Divergence of the batch's mean prediction, in nats. 0 for an empty batch."""
        log_p = as_classes(step.clean.logits).log_softmax(1).movedim(1, -1)
        mask = step.mask_of(step.clean.logits, of_decisions=True)
        log_p = log_p.flatten(0, -2) if mask is None else log_p[mask[:, 0]]
        count, classes = log_p.shape
        if self.prior is not None and len(self.prior) != classes:
            raise ValueError(f"prior must have one frequency for each of {classes} classes, got {len(self.prior)}")
        if count == 0:
            return log_p.sum()
        log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min / 2)  # keeps it finite if a logit of -inf excludes a class
        log_mean = log_p.logsumexp(0) - math.log(count)  # in log-probabilities, so that no class's share rounds to 0
        log_prior = -math.log(classes) if self.prior is None else self.prior.to(log_mean).log()
        return (log_mean.exp() * (log_mean - log_prior)).sum()
