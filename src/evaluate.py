"""Find out how a trained classifier behaves: clean accuracy, calibration, smoothness, and robustness against attacks and corruptions.

python src/evaluate.py ckpt_path=outputs/.../checkpoints/last.ckpt
python src/evaluate.py ckpt_path=... data=mnist attack=pgd pgd.steps=200 eps.linf=[0.1,0.2,0.3]

What it finds goes to `evaluation/` in the run's folder. Started again with the same settings, it goes on where it was interrupted.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: see train.py

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from matplotlib.figure import Figure
from matplotlib.image import imread
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

import direction_report
import report
import runs
import schema
from vat import VAT, plots, robustness
from vat.attacks import APGD, Attack, Threat, Transfer, predictions
from vat.data.datamodule import ResidentDataModule
from vat.data.loader import EvalLoader
from vat.data.splits import evenly
from vat.functional import by_name
from vat.loggers import finish_wandb
from vat.norms import NORMS

BYSTANDERS = ("ckpt_path", "source", "logger", "device", "allow_targets")
"""Keys that a result does not depend on, or that enter it by the content of the file they name."""

SHARES_OF_LDS_EPS = (0.25, 0.5, 1.0, 2.0)
PICTURES = 8

schema.register()


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        network: In evaluation mode, on the device.
        record: Of its run: the settings, class names, the input's description.
        data: Whose test part it is evaluated on.
        rows: Of that part.
        run: The folder of the run that left the checkpoint.
        device: Of the network.
    """

    network: nn.Module
    record: dict[str, Any]
    data: ResidentDataModule
    rows: Tensor
    run: Path
    device: torch.device

    def batches(self, size: int) -> EvalLoader:
        """The examples, so many at a time."""
        return EvalLoader(self.data.x, self.data.y, self.rows, batch_size=size)


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate one checkpoint."""
    with runs.readable_errors():
        make = by_name("report", REPORTS, cfg.report)
        runs.refuse_foreign_settings(cfg)
        make(cfg, subject(cfg))


def subject(cfg: DictConfig) -> Subject:
    """The checkpoint's network and the examples to evaluate it on.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, the data do not fit it, or there are none.
    """
    path = runs.existing(cfg.ckpt_path)
    checkpoint = runs.read_checkpoint(path)
    record = checkpoint["record"]
    device = runs.device_named(cfg.device)
    network = runs.network_of(checkpoint, path, allow_targets=cfg.allow_targets).to(device)
    node = cfg.get("data") or runs.data_of(checkpoint, path, allow_targets=cfg.allow_targets)
    if "seed" in node and not any(typed.startswith("data.seed=") for typed in HydraConfig.get().overrides.task):
        node.seed = record["config"]["data"].get("seed", node.seed)  # not that of the attacks: of a synthetic set it is another draw
    data = instantiate(node, _convert_="all")
    data.setup()
    refuse_other_data(record, data, path)
    prepare_as_trained(record, data, path)
    if cfg.get("data"):
        refuse_training_examples(checkpoint, data, path, allow_targets=cfg.allow_targets)
    else:
        refuse_changed_data(record, data, path)
    for key in ("batch_size", "limit"):
        if cfg[key] is not None and not (type(cfg[key]) is int and cfg[key] >= 1):
            raise ValueError(f"{key}={cfg[key]}: must be an integer >= 1{', or null for all' if key == 'limit' else ''}")
    if not (isinstance(cfg.norms, ListConfig) and all(isinstance(norm, str) for norm in cfg.norms)):
        raise ValueError(f"norms={cfg.norms}: must be a list, as norms=[l2]")
    for norm, radii in cfg.eps.items():
        if radii is not None and not (isinstance(radii, ListConfig) and all(type(eps) in (int, float) for eps in radii)):
            raise ValueError(f"eps.{norm}={radii}: must be a list of numbers, as eps.{norm}=[0.5,1], or null")
    rows = data.split.test
    if len(rows) == 0:
        raise ValueError("the test part of the data is empty: there is nothing to evaluate")
    rows = rows if cfg.limit is None else evenly(rows, cfg.limit)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return Subject(network, record, data, rows, run, device)


def refuse_other_data(record: dict[str, Any], data: ResidentDataModule, path: Path) -> None:
    """A network is evaluated on inputs of the shape, unit and classes it was trained on.

    Raises:
        ValueError: names the first difference.
    """
    found = {"inputs of shape": list(data.input_shape), "the classes": list(data.class_names), "inputs in": data.unit}
    trained = {"inputs of shape": record["input_shape"], "the classes": record["class_names"], "inputs in": record["unit"]}
    for what, value in found.items():
        if value != trained[what]:
            raise ValueError(
                f"{path} was trained on {what} {_shown(trained[what])}; {type(data).__name__} has {_shown(value)}: evaluate it on its own "
                "data (without data=...), or on others like them"
            )


def prepare_as_trained(record: dict[str, Any], data: ResidentDataModule, path: Path) -> None:
    """Standardise features as those the network was trained on, whatever the mean and standard deviation of these.

    Raises:
        ValueError: they are of other columns.
    """
    own, trained = preparation(data.preparation), preparation(record.get("preparation") or data.preparation)
    refuse_other_columns(trained, own, path)
    if own != trained:
        assert isinstance(data.x, Tensor)  # features are not streamed
        values = (torch.tensor(of[key], dtype=torch.float64) for of in (own, trained) for key in ("mean", "std"))
        mean, std, trained_mean, trained_std = values
        data.x = ((data.x.double() * std + mean - trained_mean) / trained_std).float()


def preparation(found: dict[str, Any] | None) -> dict[str, Any]:
    """How values of a file became inputs (`ResidentDataModule.preparation`), complete."""
    return {"columns": None, "mean": 0.0, "std": 1.0, **(found or {})}


def refuse_other_columns(trained: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    """Features must come in the order of those the network was trained on.

    Raises:
        ValueError: they do not.
    """
    if trained["columns"] != given["columns"]:
        raise ValueError(
            f"{path} was trained on the columns {_shown(trained['columns'])}; the data have {_shown(given['columns'])}: give them as there"
        )


def refuse_changed_data(record: dict[str, Any], data: ResidentDataModule, path: Path) -> None:
    """The checkpoint's own data are those it was trained on, or examples of its training could be among those to test.

    Raises:
        ValueError: they have changed.
    """
    found = runs.describe(data)
    if any(record.get(key, found[key]) != found[key] for key in ("split", "data")):
        raise ValueError(
            f"{path} was trained on other data: the files have changed since, so that examples of its training may be among those to test. "
            "Put the old ones back, or name data that it has not seen by data=..."
        )


def refuse_training_examples(
    checkpoint: dict[str, Any], data: ResidentDataModule, path: Path, *, allow_targets: Sequence[str] = ()
) -> None:
    """Of the set that the network was trained on, divided otherwise, no example of its training is tested.

    Raises:
        ValueError: some are.
    """
    record = checkpoint["record"]
    if record.get("split") == data.split.digest or record.get("data") != runs.data_digest(data):  # which reads every file
        return
    trained = instantiate(runs.data_of(checkpoint, path, allow_targets=allow_targets), _convert_="all")
    trained.setup()
    seen = torch.cat([trained.split.labeled, trained.split.unlabeled])
    if number := int(torch.isin(data.split.test, seen).sum()):
        raise ValueError(
            f"{path} was trained on {number} of the {len(data.split.test)} examples to test, as these data are its own, divided otherwise: "
            "leave out data=..., or divide them as they were"
        )


def _shown(value: Any) -> str:
    return str(value) if not isinstance(value, list) or len(value) <= 12 else f"{value[:3]} and {len(value) - 3} more"


# --------------------------------------------------------------------------------------------------- the report on robustness


def robustness_report(cfg: DictConfig, of: Subject) -> None:
    """Run the attacks, and write and show what stands: results.jsonl, robustness.json, curves.png, examples.png, table and warnings."""
    for norm in cfg.norms:
        by_name("norm", NORMS, norm)
    grid = {norm: list(cfg.eps[norm]) if cfg.eps[norm] is not None else default_radii(norm, of.data) for norm in cfg.norms}
    attacks: list[Attack] = instantiate(cfg.attacks, _convert_="all")
    if cfg.source is not None:
        attacks.append(Transfer(source(cfg, of)))
    settings = described(cfg, of, grid)
    folder = of.run / "evaluation" / f"robustness-{runs.digest(settings)}"
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
            progress.console.print("interrupted: the same command goes on from here")
            raise
    spared = [attack.name for attack in attacks[1:] if attack.spared or cfg.cascade]
    found |= {"of": len(of.data.split.test), "unit": of.data.unit, "spared": spared, "settings": settings}
    keep(folder, found, lambda: drawings(of, found, grid))
    log(cfg, of, found, sorted(folder.glob("*.png")))
    show(found, folder)


def keep(folder: Path, found: dict[str, Any], draw: Callable[[], dict[str, Figure]]) -> None:
    """Write robustness.json behind the figures; where it is there already and the same, only its time is new."""
    path, text = folder / "robustness.json", json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if path.exists() and path.read_text() == text:
        path.touch()
        return
    for name, figure in draw().items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def drawings(of: Subject, found: dict[str, Any], grid: dict[str, list[float]]) -> dict[str, Figure]:
    """The figures of a report by name: accuracy against ε, and adversarial examples where there are some to be seen."""
    curves = plots.robustness_figure(found["robust"], found["clean"]["accuracy"], unit=of.data.unit)
    examples = examples_figure(of, grid)
    return {"curves": curves} if examples is None else {"curves": curves, "examples": examples}


def default_radii(norm: str, data: ResidentDataModule) -> list[float]:
    """Radii around the one at which the data set's LDS is monitored; in L∞ those of balls whose corners lie as far away."""
    scale = data.lds_eps / (1 if norm == "l2" else math.sqrt(math.prod(data.input_shape)))
    return [float(f"{share * scale:.3g}") for share in SHARES_OF_LDS_EPS]


def described(cfg: DictConfig, of: Subject, grid: dict[str, list[float]]) -> dict[str, Any]:
    """Everything that the result depends on, in plain values."""
    settings = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in BYSTANDERS]), resolve=True)
    assert isinstance(settings, dict)
    contents = {key: hashlib.sha256(Path(cfg[key]).read_bytes()).hexdigest() for key in ("ckpt_path", "source") if cfg[key] is not None}
    return {**settings, "eps": grid, "contents": contents, "split": of.data.split.digest, "data_digest": runs.data_digest(of.data)}  # pyright: ignore[reportReturnType]


def source(cfg: DictConfig, of: Subject) -> nn.Module:
    """The network whose adversarial examples are tried on the subject.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it takes other inputs, or tells other classes apart.
    """
    path = runs.existing(cfg.source, "source")
    checkpoint = runs.read_checkpoint(path)
    network = runs.network_of(checkpoint, path, allow_targets=cfg.allow_targets)
    refuse_other_data(checkpoint["record"], of.data, path)
    own, attacked = (preparation(record.get("preparation")) for record in (checkpoint["record"], of.record))
    refuse_other_columns(own, attacked, path)
    if not all(torch.allclose(torch.tensor(own[key]), torch.tensor(attacked[key])) for key in ("mean", "std")):
        raise ValueError(f"source={path} was trained on features standardised otherwise than those of {cfg.ckpt_path}: take the same")
    return network.to(of.device).requires_grad_(False)


def bar() -> Progress:
    """Which batch, how far, how long it takes yet."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=report.console, transient=True)


def examples_figure(of: Subject, grid: dict[str, list[float]]) -> Figure | None:
    """Some examples that an attack felled, at the middle radius of the first norm; None for what is no image, or where all stand."""
    radii = {norm: sorted(radii) for norm, radii in grid.items() if max(radii, default=0) > 0}
    if len(of.data.input_shape) != 3 or of.data.input_shape[0] not in (1, 3) or not radii:
        return None
    norm, ordered = next(iter(radii.items()))
    eps = ordered[len(ordered) // 2]
    x, y = next(iter(of.batches(200)))
    x, y = x.to(of.device), y.to(of.device)
    with robustness.evaluating(of.network):
        x, y = (value[predictions(of.network, x) == y] for value in (x, y))
        threat = Threat(NORMS[norm], eps, of.data.bounds)
        point = APGD(loss="dlr")(of.network, x, y, threat, torch.Generator(of.device).manual_seed(0)) if len(x) else x
        mistaken = predictions(of.network, point) if len(x) else y
    fell = torch.nonzero(mistaken != y)[:PICTURES, 0]
    if not len(fell):
        return None
    names = [(of.data.class_names[a], of.data.class_names[b]) for a, b in zip(y[fell].tolist(), mistaken[fell].tolist(), strict=True)]
    return plots.adversarial_figure(x[fell].cpu(), point[fell].cpu(), names, bounds=of.data.bounds, title=f"ε = {eps:g} in {norm}")


def log(cfg: DictConfig, of: Subject, found: dict[str, Any], drawings: list[Path]) -> None:
    """To the run's logger, where one is chosen; figures where it takes them."""
    if not cfg.logger._target_:
        return
    runs.keep_logged(of.run)
    logger = instantiate(cfg.logger, save_dir=str(of.run))
    try:
        values = {f"evaluation/{name}": value for name, value in found["clean"].items() if value is not None}
        for norm, robust in found["robust"].items():
            for name, accuracies in robust["accuracy"].items():
                values |= {f"evaluation/{norm}/{name}/{e:g}": a for e, a in zip(robust["eps"], accuracies, strict=True)}
        for kind, accuracies in found["corruptions"].items():
            values |= {f"evaluation/{kind}/{s}": a for s, a in zip(robustness.SEVERITIES, accuracies, strict=True)}
        logger.log_metrics(values)
        for path in drawings:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"evaluation/{path.stem}", [str(path)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"evaluation/{path.stem}", imread(path), dataformats="HWC")
        logger.finalize("success")
    finally:
        finish_wandb()


def show(found: dict[str, Any], folder: Path) -> None:
    """Print the tables, the warnings, and where the files lie."""
    clean = found["clean"]
    share = "the whole test part" if found["examples"] == found["of"] else f"NOT the whole test part, which has {found['of']}"
    table = Table(show_header=False, title=f"Clean: {found['examples']} examples, {share}", title_justify="left")
    table.add_row("accuracy", f"{100 * clean['accuracy']:.2f} %")
    for name in ("calibration_error", "cross_entropy", "lds"):
        table.add_row(name.replace("_", " "), f"{clean[name]:.4f}")
    for name, what in (("margin", "logits"), ("distance", "first order, in L2"), ("lipschitz", "lower bound, logits per unit in L2")):
        if clean[name] is not None:
            table.add_row(name, f"{clean[name]:.4g}  ({what})")
    report.console.print(table)
    for norm, robust in found["robust"].items():
        table = Table(
            "attack", *(f"ε = {e:g}" for e in robust["eps"]), title=f"Accuracy in %, {norm}, {found['unit']}", title_justify="left"
        )
        for name, accuracies in robust["accuracy"].items():
            shown = f"{name} *" if name in found["spared"] else name
            table.add_row(shown, *(f"{100 * a:.2f}" for a in accuracies), style="bold" if name == "worst" else "")
        report.console.print(table)
    if found["spared"]:
        report.console.print("* given only what the white-box attacks above it left standing")
    heads = (f"severity {s}" for s in robustness.SEVERITIES)
    table = Table("corruption", *heads, title="Accuracy in %, corruptions", title_justify="left")
    for kind, accuracies in found["corruptions"].items():
        table.add_row(kind, *(f"{100 * a:.2f}" for a in accuracies))
    report.console.print(table)
    for check, text in found["warnings"].items():
        report.console.print(f"warning ({check}): {text}", style="yellow", markup=False)
    report.console.print(f"files: {report.shown(folder.absolute())}")


# ---------------------------------------------------------------------------------------------------- the report on the direction


def on_direction(cfg: DictConfig, of: Subject) -> None:
    """Judge the VAT of the checkpoint's run, or the default where it had none: a table, words on it, and `evaluation/direction.json`."""
    rows = evenly(of.rows, direction_report.EXAMPLES) if cfg.limit is None else of.rows
    batches = EvalLoader(of.data.x, of.data.y, rows, batch_size=min(cfg.batch_size, 128))
    config = of.record["config"]
    vat = direction_report.judged(config, allow_targets=cfg.allow_targets)
    if vat is None:
        published = any(node["_target_"].endswith(".PublishedVAT") for node in config["regularizers"])
        why = "the run's VAT is computed in a published way, whose r this cannot judge" if published else "the run had no VAT"
        report.console.print(f"{why}: the default direction is judged, at the radius where LDS is monitored", style="yellow")
        vat = VAT(of.data.lds_eps)
    found = direction_report.measure(of.network, batches, vat, seed=cfg.seed, device=of.device)
    direction_report.show(found, vat, of.data.unit, of.run / "evaluation" / "direction.json")


REPORTS: dict[str, Callable[[DictConfig, Subject], None]] = {"robustness": robustness_report, "direction": on_direction}
"""What `report=` may name."""

if __name__ == "__main__":
    main()
