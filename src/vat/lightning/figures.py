"""Figures of a run, drawn at an interval and at its end, for its folder and its loggers."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from vat import VAT, files, plots
from vat.data.datamodule import EVALUATION_BATCH_SIZE, ROWS_WITH_GRAPH
from vat.data.loader import EvalLoader, as_input
from vat.data.splits import evenly
from vat.evaluation.diagnosis import looks_for_r
from vat.functional import probabilities
from vat.lightning import history
from vat.precision import full_precision
from vat.step import Key, Step

MOST_EXAMPLES = 10_000
MOST_PERTURBED = 500

CAPTIONS = {
    "curves": "Course of the run: validation, the terms of the loss, and the KL for r and for a random perturbation of the same length",
    "perturbations": "Inputs, their r, and the predictions before and after, in the order of increasing KL",
    "features": "The features that r changes most",
    "plane": "Decision boundary and LDS on the plane of the data, with the labelled points",
    "kl": "Change of the predictions, over the examples",
    "confusion": "Confusion matrix",
    "class_error": "Error of each class",
    "reliability": "Reliability: does the accuracy agree with the confidence?",
}


class Figures(pl.Callback):
    """Draw a run's figures as PNG files in its folder, and pass them to W&B and TensorBoard.

    Figures at an interval show validation examples. So do the final figures of a run without a test. If a figure fails (memory, disk,
    W&B), the run continues without that figure and the following ones.

    Args:
        folder: Folder of the run. The final figures are `figures/NAME.png`, earlier ones `figures/step-N/NAME.png`.
        every_n_steps: Optimizer steps between two drawings, >= 0. A drawing happens at the next validation. 0: only at the end.
        at_end: When to draw the final figures: at the end of "test", or of "validation" if the run has no test.
    """

    def __init__(self, folder: Path, *, every_n_steps: int = 0, at_end: Literal["test", "validation"] = "test") -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must be >= 0, got {every_n_steps}")
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.at_end = at_end
        self._drawn = 0

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            since = trainer.global_step // self.every_n_steps if self.every_n_steps else 0
            if since > self._drawn and not trainer.sanity_checking:
                self._drawn = since
                self._draw(trainer, pl_module, "validation", Path(f"step-{trainer.global_step:06d}"))
        elif self.at_end == "validation":
            self._draw(trainer, pl_module, "validation", Path())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn = trainer.global_step // self.every_n_steps if self.every_n_steps else 0

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.at_end == "test":
            self._draw(trainer, pl_module, "test", Path())

    def _draw(self, trainer: pl.Trainer, pl_module: Any, part: str, place: Path) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self._draw_all(trainer, pl_module, part, place)
        except Exception as error:  # any kind: a figure must never stop a run
            warnings.warn(f"figures are missing, the run continues: {type(error).__name__}: {error}", stacklevel=2)

    def _draw_all(self, trainer: pl.Trainer, pl_module: Any, part: str, place: Path) -> None:
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        vat = next((r for r in pl_module.regularizers.values() if looks_for_r(r) and r.current_eps > 0), None)
        vat = vat or VAT(pl_module.lds_eps, direction="finite_difference", num_power_iterations=5, choose_sign=True)
        figures = draw(pl_module.network, data, part, vat)
        if records := history.read(self.folder / history.HISTORY):
            figures["curves"] = plots.curves_figure(records)
        folder = self.folder / "figures" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            with files.replacing(path) as new:
                figure.savefig(new, dpi=130)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"figures/{name}", [str(path)], step=trainer.global_step)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"figures/{name}", imread(path), trainer.global_step, dataformats="HWC")


@torch.no_grad()
def draw(network: nn.Module, data: Any, part: Literal["validation", "test"] | str, vat: VAT) -> dict[str, Figure]:
    """Draw the figures of a network on a part of its data.

    Args:
        network: Network in evaluation mode. It does not change.
        data: The `ResidentDataModule` of its training, after `setup`.
        part: Part of `data.split`.
        vat: `VAT` that finds r.

    Returns:
        Figures by name.
    """
    rows = evenly(getattr(data.split, part), MOST_EXAMPLES)
    loader = EvalLoader(data.x, data.y, rows, batch_size=EVALUATION_BATCH_SIZE)
    found = [(probabilities(network(x)).cpu(), y.cpu()) for x, y in loader]
    chances, y = (torch.cat(parts) for parts in zip(*found, strict=True))
    counts = torch.bincount(y * data.num_classes + chances.argmax(1), minlength=data.num_classes**2).view(2 * [data.num_classes])
    return {
        **_perturbations(network, data, evenly(rows, MOST_PERTURBED), vat),
        "confusion": plots.confusion_figure(counts, data.class_names),
        "class_error": plots.class_error_figure(counts, data.class_names),
        "reliability": plots.reliability_figure(chances, y),
    }


def _perturbations(network: nn.Module, data: Any, rows: Tensor, vat: VAT) -> Mapping[str, Figure]:
    eps, parts = vat.current_eps, []
    with full_precision(data.y.device):
        for number, some in enumerate(rows.to(data.y.device).split(ROWS_WITH_GRAPH)):
            step = Step(network, as_input(data.x[some]), class_dim=1, key=Key(number))
            divergence, norm = step.divergence(vat.divergence), step.norm(vat.norm, vat.per)
            r = vat.virtual_adversarial_perturbation(step).detach()
            chance = eps * norm.sample(step.normal("figures")).to(r.dtype)
            after, at_random = (step.network(step.x + shift, constant=True) for shift in (r, chance))
            kl, kl_random = (divergence(step.target, logits) for logits in (after, at_random))
            parts.append((step.x, r, probabilities(step.target), probabilities(after), kl, kl_random, data.y[some]))
    x, r, before, after, kl, kl_random, y = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    figures = {"kl": plots.kl_figure(kl, kl_random, eps=eps)}
    if hasattr(data, "embedding"):
        labeled = data.split.labeled.cpu()
        plane = {"": network}
        z, classes, embedding = data.z.cpu()[labeled], data.y.cpu()[labeled], data.embedding.to(data.y.device)
        figures["plane"] = plots.plane_figure(plane, z, classes, embedding, eps=eps, title="Decision boundary and LDS")
    elif x.ndim == 4 and x.shape[1] in (1, 3):
        figures["perturbations"] = plots.perturbation_figure(x, r, before, after, kl, y, class_names=data.class_names, eps=eps)
    elif x.ndim == 2:
        names = (data.preparation or {}).get("columns") or [f"feature {i}" for i in range(x.shape[1])]
        figures["features"] = plots.feature_figure(r, names=names, eps=eps)
    return figures
