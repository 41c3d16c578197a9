"""`trainer.strategy=fsdp2`: weights, gradients and the optimizer's state are divided among the processes."""

import os
import socket
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch.optim import Optimizer


class FSDP2(ModelParallelStrategy):
    """Lightning's, over all processes. A checkpoint is one whole file, with which a run may go on under another strategy."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Known only now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        """The whole state; one that is still empty stays so: torch fills it by a step on zeros, which Adam and momentum would count."""
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        empty = not inner.state
        whole = super().optimizer_state(inner)
        if empty:
            inner.state.clear()
        return whole


def refuse_port_in_use(cfg: DictConfig) -> None:
    """Refuse a `MASTER_PORT` that another program holds: this process would fail, and those that it starts wait for ever.

    Raises:
        ValueError: names the port.
    """
    port = os.environ.get("MASTER_PORT", "")
    starts_others = (cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1) and "LOCAL_RANK" not in os.environ
    if not (starts_others and port.isdecimal()):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            raise ValueError(f"MASTER_PORT={port} cannot be used ({error}): unset it, or name a free port") from error


StrategyRegistry.register("fsdp2", FSDP2)


def refuse_whole_weights(cfg: DictConfig) -> None:
    """Refuse settings that copy, load or compile the weights of all layers at once, which torch does not for those of FSDP2, and float16,
    whose scaling of gradients Lightning does not know to do there.

    Raises:
        ValueError: names them.
    """
    teachers = [node for node in cfg.regularizers if node["_target_"].endswith(".MeanTeacher")]
    asked = {
        "ema": cfg.ema is not None,
        "test=best": cfg.test == "best",
        "MeanTeacher": bool(teachers),
        "compile=true": cfg.compile,
        "trainer.precision=16-mixed": cfg.trainer.precision == "16-mixed",
    }
    if named := [name for name, given in asked.items() if given]:
        raise ValueError(
            f"trainer.strategy=fsdp2 divides the weights; {' and '.join(named)} cannot do with parts: leave it out, or take ddp"
        )
