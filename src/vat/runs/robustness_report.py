"""The report on robustness: accuracy under attacks and corruptions, as tables, figures and JSON."""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from matplotlib.figure import Figure
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from vat import files, plots
from vat.attacks import APGD, Attack, Threat, Transfer, predictions
from vat.data.datamodule import ResidentDataModule
from vat.evaluation import robustness
from vat.evaluation.clean import NOT_FINITE
from vat.evaluation.corruptions import SEVERITIES
from vat.evaluation.few_examples import FEW, counted, interval
from vat.functional import by_name
from vat.lightning.loggers import finishing_wandb
from vat.norms import NORMS
from vat.runs import checkpoints, folders, records, report
from vat.runs.subject import Subject, preparation, refuse_other_columns, refuse_other_data

SETTINGS = ("report", "norms", "cascade", "limit", "batch_size", "seed", "attacks", "data")
"""Keys that a result depends on, in addition to the files that `ckpt_path` and `source` name."""

SHARES_OF_LDS_EPS = (0.25, 0.5, 1.0, 2.0)

PICTURES = 8


def robustness_report(cfg: DictConfig, of: Subject) -> None:
    """Run the attacks. Write and show the results: results.jsonl, robustness.json, curves.png, examples.png, table and warnings."""
    if of.data.holds_words:
        refuse_attacks_on_words()
        cfg = OmegaConf.merge(cfg, {"norms": [], "attacks": []})  # pyright: ignore[reportAssignmentType]
    for norm in cfg.norms:
        by_name("norm", NORMS, norm)
    grid = {norm: list(cfg.eps[norm]) if cfg.eps[norm] is not None else default_radii(norm, of.data) for norm in cfg.norms}
    attacks: list[Attack] = instantiate(cfg.attacks, _convert_="all")
    if cfg.source is not None:
        attacks.append(Transfer(source(cfg, of)))
    settings = described(cfg, of, grid)
    folder = of.run / "evaluation" / f"robustness-{folders.digest(settings)}"
    with bar() as progress:
        task = progress.add_task("", total=1.0)
        number = len(of.batches(cfg.batch_size))

        def told(done: int, total: int, part: str) -> None:
            share = done / total
            progress.update(task, completed=share, description=f"batch {min(number, int(share * number) + 1)}/{number} {part}")

        try:
            found = robustness.evaluate(
                of.network,
                of.batches(cfg.batch_size),
                attacks=attacks,
                eps=grid,
                bounds=of.data.bounds,
                lds_eps=of.data.lds_eps,
                seed=cfg.seed,
                device=of.device,
                cascade=cfg.cascade,
                path=folder / "results.jsonl",
                settings=settings,
                progress=told,
            )
        except KeyboardInterrupt:
            progress.console.print("interrupted: the same command resumes from here")
            raise
    on_the_rest = [attack.name for attack in attacks[1:] if attack.on_the_rest or cfg.cascade]
    found |= {"of": len(of.data.split.test), "unit": of.data.unit, "on_the_rest": on_the_rest, "settings": settings}
    keep(folder, found, lambda: drawings(of, found, grid))
    log(cfg, of, found, sorted(folder.glob("*.png")))
    show(found, folder)


def refuse_attacks_on_words() -> None:
    """Refuse attacks on texts. An attack changes numbers slightly, but the numbers of words have no such meaning.

    Raises:
        ValueError: If the command line sets an option of attacks.
    """
    for typed in HydraConfig.get().overrides.task:
        if re.match(r"[+~]*(attacks?|norms|eps|source|cascade)\b", typed):
            raise ValueError(
                f"{typed}: attacks perturb numbers, not words. Remove this option. Accuracy, calibration and LDS are measured without it"
            )


def keep(folder: Path, found: dict[str, Any], draw: Callable[[], dict[str, Figure]]) -> None:
    """Write robustness.json, then the figures. If both exist and are the same, only update the file's time.

    If a figure cannot be drawn, a warning says why. The numbers are written all the same.
    """
    path, text = folder / "robustness.json", json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if path.exists() and path.read_bytes() == text.encode(errors="surrogateescape") and (folder / "curves.png").exists():
        path.touch()
        return
    files.write(path, text)
    try:
        for name, figure in draw().items():
            with files.replacing(folder / f"{name}.png") as part:
                figure.savefig(part, dpi=130)
    except Exception as error:
        warnings.warn(f"figures of the evaluation are missing: {type(error).__name__}: {error}", stacklevel=2)


def drawings(of: Subject, found: dict[str, Any], grid: dict[str, list[float]]) -> dict[str, Figure]:
    """The figures of a report by name: accuracy against ε, and adversarial examples if they are images."""
    if not found["robust"]:
        return {}
    curves = plots.robustness_figure(found["robust"], found["clean"]["accuracy"], unit=of.data.unit)
    examples = examples_figure(of, grid)
    return {"curves": curves} if examples is None else {"curves": curves, "examples": examples}


def default_radii(norm: str, data: ResidentDataModule) -> list[float]:
    """Radii around the radius of the data set's LDS. In L∞, the corners of the ball have that distance."""
    scale = data.lds_eps / (1 if norm == "l2" else math.sqrt(math.prod(data.input_shape)))
    return [float(f"{share * scale:.3g}") for share in SHARES_OF_LDS_EPS]


def described(cfg: DictConfig, of: Subject, grid: dict[str, list[float]]) -> dict[str, Any]:
    """Everything that the result depends on, in plain values."""
    nodes = {key: cfg[key] for key in SETTINGS if key in cfg}
    settings = {key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node for key, node in nodes.items()}
    contents = {key: hashlib.sha256(Path(cfg[key]).read_bytes()).hexdigest() for key in ("ckpt_path", "source") if cfg[key] is not None}
    return {**settings, "eps": grid, "contents": contents, "split": of.data.split.digest, "data_digest": records.data_digest(of.data)}


def source(cfg: DictConfig, of: Subject) -> nn.Module:
    """The network whose adversarial examples are applied to the subject.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it takes other inputs, or has other classes.
    """
    path = folders.existing(cfg.source, "source")
    checkpoint = checkpoints.read_checkpoint(path)
    network = records.network_of(checkpoint, path, allow_targets=cfg.allow_targets)
    refuse_other_data(checkpoint["record"], of.data, path)
    own, attacked = (preparation(record.get("preparation")) for record in (checkpoint["record"], of.record))
    refuse_other_columns(own, attacked, path)
    if not all(torch.allclose(torch.tensor(own[key]), torch.tensor(attacked[key])) for key in ("mean", "std")):
        raise ValueError(f"source={path} must be trained on features standardised as those of {cfg.ckpt_path}. Name another checkpoint")
    network = network.to(of.device).requires_grad_(False)
    x, _ = next(iter(of.batches(cfg.batch_size)))
    if not network(x.to(of.device)).isfinite().all():  # its adversarial examples would be the clean inputs
        raise ValueError(NOT_FINITE.format(f"source={path}"))
    return network


def bar() -> Progress:
    """A progress bar with the batch, the share done, the time spent and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=report.console, transient=True)


def examples_figure(of: Subject, grid: dict[str, list[float]]) -> Figure | None:
    """Some misclassified adversarial images, at the middle radius of the first norm. None without images, or if all are robust."""
    radii = {norm: sorted(radii) for norm, radii in grid.items() if max(radii, default=0) > 0}
    if len(of.data.input_shape) != 3 or of.data.input_shape[0] not in (1, 3) or not radii:
        return None
    norm, ordered = next(iter(radii.items()))
    eps = ordered[len(ordered) // 2]
    x, y = next(iter(of.batches(200)))
    x, y = x.to(of.device), y.to(of.device)
    with robustness.evaluating(of.network):
        right = predictions(of.network, x) == y  # once, because a randomised network gives another output each time
        x, y = x[right], y[right]
        threat = Threat(NORMS[norm], eps, of.data.bounds)
        point = APGD(loss="dlr")(of.network, x, y, threat, torch.Generator(of.device).manual_seed(0)) if len(x) else x
        mistaken = predictions(of.network, point) if len(x) else y
    wrong = torch.nonzero(mistaken != y)[:PICTURES, 0]
    if not len(wrong):
        return None
    names = [(of.data.class_names[a], of.data.class_names[b]) for a, b in zip(y[wrong].tolist(), mistaken[wrong].tolist(), strict=True)]
    return plots.adversarial_figure(x[wrong].cpu(), point[wrong].cpu(), names, bounds=of.data.bounds, title=f"ε = {eps:g} in {norm}")


def log(cfg: DictConfig, of: Subject, found: dict[str, Any], drawings: list[Path]) -> None:
    """Write the results to the run's logger, if one is chosen, and the figures if it accepts them."""
    if not cfg.logger._target_:
        return
    with finishing_wandb():
        logger = instantiate(cfg.logger, save_dir=str(of.run))
        values = {f"evaluation/{name}": value for name, value in found["clean"].items() if value is not None}
        for norm, robust in found["robust"].items():
            for name, accuracies in robust["accuracy"].items():
                values |= {f"evaluation/{norm}/{name}/{e:g}": a for e, a in zip(robust["eps"], accuracies, strict=True)}
        for kind, accuracies in found["corruptions"].items():
            values |= {f"evaluation/{kind}/{s}": a for s, a in zip(SEVERITIES, accuracies, strict=True)}
        logger.log_metrics(values)
        for path in drawings:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"evaluation/{path.stem}", [str(path)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"evaluation/{path.stem}", imread(path), dataformats="HWC")
        logger.finalize("success")


def show(found: dict[str, Any], folder: Path) -> None:
    """Print the tables, the warnings, and the folder of the files."""
    clean = found["clean"]
    share = "the complete test part" if found["examples"] == found["of"] else f"NOT the complete test part, which has {found['of']}"
    table = Table(show_header=False, title=f"Clean: {found['examples']} examples, {share}", title_justify="left")
    few = counted(clean["accuracy"], found["examples"])
    table.add_row("accuracy", f"{100 * clean['accuracy']:.2f} %" + (few and f"; {few}"))
    for name in ("calibration_error", "cross_entropy", "lds"):
        table.add_row(name.replace("_", " "), f"{clean[name]:.4f}")
    for name, what in (("margin", "logits"), ("distance", "first order, in L2"), ("lipschitz", "lower bound, logits per unit in L2")):
        if clean[name] is not None:
            table.add_row(name, f"{clean[name]:.4g}  ({what})")
    report.console.print(table)
    number, below = found["examples"], f"; below each its 95 % interval, of {found['examples']} examples" if few else ""
    for norm, robust in found["robust"].items():
        table = Table(
            "attack", *(f"ε = {e:g}" for e in robust["eps"]), title=f"Accuracy in %, {norm}, {found['unit']}{below}", title_justify="left"
        )
        for name, accuracies in robust["accuracy"].items():
            shown = f"{name} *" if name in found["on_the_rest"] else name
            table.add_row(shown, *(with_interval(a, number) for a in accuracies), style="bold" if name == "worst" else "")
        report.console.print(table)
    if found["on_the_rest"]:
        report.console.print("* tried only on examples robust to the white-box attacks above it")
    heads = (f"severity {s}" for s in SEVERITIES)
    table = Table("corruption", *heads, title=f"Accuracy in %, corruptions{below}", title_justify="left")
    for kind, accuracies in found["corruptions"].items():
        table.add_row(kind, *(with_interval(a, number) for a in accuracies))
    if found["corruptions"]:
        report.console.print(table)
    for check, text in found["warnings"].items():
        report.console.print(f"warning ({check}): {text}", style="yellow", markup=False)
    report.console.print(f"files: {report.shown(folder.absolute())}")


def with_interval(accuracy: float, number: int) -> str:
    """An accuracy in %, and on a second line its 95 % interval if the examples are few."""
    return f"{100 * accuracy:.2f}" + (f"\n{interval(round(accuracy * number), number)}" if number < FEW else "")
