"""Schedules of the learning rate: the papers' linear decay of Adam's rate and β₁, and a decay with warm-up."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class LinearDecay(LRScheduler):
    """A constant learning rate that then decreases linearly to 0 over the rest of the run. Adam's β₁ can decrease with it.

    TPAMI (arXiv 1704.03976) has `hold` 2/3 of 48,000 updates on SVHN and 0.92 of 200,000 on CIFAR-10, and β₁ from 0.9 to 0.5. In its code
    β₁ becomes 0.5 as soon as the rate decreases. Here β₁ decreases gradually with the rate. With a constant β₁, old gradients would stay in
    the average for too long.

    Args:
        optimizer: Optimizer whose `lr`, and with `final_beta1` also `betas`, changes.
        total_steps: Number of steps of the run, >= 1. After them the rate is 0 and stays 0.
        hold: Share of the run before the decrease, >= 0 and < 1.
        final_beta1: Final value of β₁, >= 0 and < 1. None: β₁ does not change.

    Raises:
        ValueError: If a value is out of range, or the optimizer has no `betas`.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, hold: float = 0.0, final_beta1: float | None = None):
        if total_steps < 1:
            raise ValueError(f"total_steps must be >= 1, got {total_steps}: set trainer.max_steps")
        if not 0 <= hold < 1:
            raise ValueError(f"hold is a share of the run and must be >= 0 and < 1, got {hold}")
        if final_beta1 is not None and not 0 <= final_beta1 < 1:
            raise ValueError(f"final_beta1 must be >= 0 and < 1, got {final_beta1}")
        if final_beta1 is not None and any("betas" not in group for group in optimizer.param_groups):
            raise ValueError(f"final_beta1={final_beta1} needs an optimizer with betas such as Adam, got {type(optimizer).__name__}")
        self.total_steps = total_steps
        self.hold = hold
        self.final_beta1 = final_beta1
        self.initial_beta1s = [group["betas"][0] for group in optimizer.param_groups] if final_beta1 is not None else []
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's stub allows tensors too
        """Learning rate of each parameter group at this step."""
        return [float(rate) * self._left() for rate in self.base_lrs]

    def step(self, *args: Any, **kwargs: Any) -> None:
        super().step(*args, **kwargs)
        for group, initial in zip(self.optimizer.param_groups, self.initial_beta1s, strict=False):
            assert self.final_beta1 is not None
            group["betas"] = (self.final_beta1 + (initial - self.final_beta1) * self._left(), *group["betas"][1:])

    def _left(self) -> float:
        """Remaining share of the decrease: 1 before it, 0 at the end."""
        return min(1.0, max(0.0, (1 - self.last_epoch / self.total_steps) / (1 - self.hold)))


class WarmedLinearDecay(LinearDecay):
    """A learning rate that rises linearly from near 0, and then decreases linearly to 0 over the rest of the run.

    Args:
        optimizer: Optimizer whose `lr` changes.
        total_steps: Number of steps of the run, >= 1. After them the rate is 0 and stays 0.
        warmup: Share of the run over which the rate rises, >= 0 and < 1.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1):
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of the run and must be >= 0 and < 1, got {warmup}")
        super().__init__(optimizer, total_steps, hold=warmup)

    def get_lr(self) -> list[float]:
        rising = self.hold * self.total_steps
        risen = min(1.0, (self.last_epoch + 1) / rising) if rising else 1.0
        return [risen * rate for rate in super().get_lr()]
