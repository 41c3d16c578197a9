"""The papers' decay of Adam's learning rate and β₁, and one that rises first."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class LinearDecay(LRScheduler):
    """A constant learning rate, then one that falls linearly to 0 over the rest of the run; Adam's β₁ may fall with it.

    TPAMI (arXiv 1704.03976) has hold 2/3 of 48,000 updates on SVHN, 0.92 of 200,000 on CIFAR-10, and β₁ from 0.9 to 0.5; in its code β₁ is
    0.5 as soon as the rate falls, here it falls along. The longer memory of the gradient would otherwise outlive the steps it comes from.

    Args:
        optimizer: whose `lr`, and `betas` where asked for, are moved.
        total_steps: steps of the run, at the end of which the rate is 0; it stays there.
        hold: share of the run before the fall, from 0 to below 1.
        final_beta1: where β₁ ends; None leaves it alone.

    Raises:
        ValueError: a value is out of range, or the optimizer has no `betas` to move.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, hold: float = 0.0, final_beta1: float | None = None):
        if total_steps < 1:
            raise ValueError(f"total_steps must be >= 1, got {total_steps}: give the run a length by trainer.max_steps")
        if not 0 <= hold < 1:
            raise ValueError(f"hold must be >= 0 and < 1, got {hold}: it is a share of the run")
        if final_beta1 is not None and not 0 <= final_beta1 < 1:
            raise ValueError(f"final_beta1 must be >= 0 and < 1, got {final_beta1}")
        if final_beta1 is not None and any("betas" not in group for group in optimizer.param_groups):
            raise ValueError(f"final_beta1 moves Adam's betas, which {type(optimizer).__name__} lacks: leave it out")
        self.total_steps = total_steps
        self.hold = hold
        self.final_beta1 = final_beta1
        self.initial_beta1s = [group["betas"][0] for group in optimizer.param_groups] if final_beta1 is not None else []
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's stub allows tensors too
        """The rate of each parameter group at this step."""
        return [float(rate) * self._left() for rate in self.base_lrs]

    def step(self, *args: Any, **kwargs: Any) -> None:
        super().step(*args, **kwargs)
        for group, initial in zip(self.optimizer.param_groups, self.initial_beta1s, strict=False):
            assert self.final_beta1 is not None
            group["betas"] = (self.final_beta1 + (initial - self.final_beta1) * self._left(), *group["betas"][1:])

    def _left(self) -> float:
        """The share of the fall that is still to come: 1 before it, 0 at the end."""
        return min(1.0, max(0.0, (1 - self.last_epoch / self.total_steps) / (1 - self.hold)))


class WarmedLinearDecay(LinearDecay):
    """A learning rate that rises linearly from near 0, and then falls linearly to 0 over the rest of the run.

    Args:
        optimizer: whose `lr` is moved.
        total_steps: steps of the run, at the end of which the rate is 0; it stays there.
        warmup: share of the run over which the rate rises, from 0 to below 1.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1):
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be >= 0 and < 1, got {warmup}: it is a share of the run")
        super().__init__(optimizer, total_steps, hold=warmup)

    def get_lr(self) -> list[float]:
        rising = self.hold * self.total_steps
        risen = min(1.0, (self.last_epoch + 1) / rising) if rising else 1.0
        return [risen * rate for rate in super().get_lr()]
