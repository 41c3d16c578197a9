"""`choose_eps=true`: short runs that choose VAT's radius by unlabelled examples, before the training itself."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.table import Table
from torch import nn

from vat.data.datamodule import ResidentDataModule
from vat.data.neighbours import neighbours
from vat.evaluation.choosing import LEFT_OUT, MOST_KL, Choice, Pilot, choose, pilot
from vat.runs import folders, honesty, records, report, side_runs
from vat.runs.checkpoints import LAST, read_checkpoint
from vat.runs.schedules import schedules
from vat.runs.side_runs import Train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Candidates, as multiples of the configured radius; training without VAT is compared with them."""
INITIALISATIONS = 2
SHARE = 4
"""A pilot run takes the SHARE-th part of the steps, but no fewer than LEAST_STEPS: a network must have learned something."""
LEAST_STEPS = 100
EXAMPLES = 500
FOLDER = folders.OUTPUTS / "pilots"


def chosen(cfg: DictConfig, data: ResidentDataModule, settings: str, *, train: Train, into: Path) -> DictConfig:
    """The configuration with the radius that pilot runs choose, or without regularizers if VAT does not help.

    Args:
        cfg: With a number as radius; it is not changed.
        data: After `setup`.
        settings: Digest of the settings. The runs are kept in a folder of this name, so that the same command resumes them.
        train: Trains one run.
        into: Folder of the run, for the table and the picture.

    Raises:
        ValueError: If there is no VAT, no unlabelled example, or more than one device.
    """
    refuse(cfg, data)
    if not cfg.regularizers:  # as classes touch, which has been said
        return cfg
    found = None if data.holds_words else neighbours(data.x, data.y, labeled=data.split.labeled, pool=data.split.unlabeled)
    if found is not None and found.classes_touch:
        report.console.print(
            f"choose_eps: the nearest labelled example has the same class in {100 * found.accuracy:.0f} % of the cases only. "
            "Training without VAT, and without pilot runs. vat.eps=... without choose_eps trains with VAT anyway",
            style="yellow",
        )
        cfg = cfg.copy()
        cfg.regularizers = []
        return cfg
    folder, todo = FOLDER / settings, list(jobs(cfg))
    steps = todo[0][2].trainer.max_steps
    share = len(todo) * steps / cfg.trainer.max_steps
    report.console.print(
        f"choose_eps: {len(todo)} pilot runs of {steps} steps, {share:.2g} times the steps of the training itself: "
        f"{len(FACTORS)} radii and none, {INITIALISATIONS} initialisations each. They are kept in {folder}; the same command resumes them"
    )
    side_runs.trained({name: job for _, name, job in todo}, folder, train=train, description="pilot runs")
    choice = choose(looked_at(cfg, data, folder, todo))
    tell(choice, into)
    cfg = cfg.copy()
    if choice.eps:
        cfg.vat.eps = choice.eps
    else:
        cfg.regularizers = []
    return cfg


def refuse(cfg: DictConfig, data: ResidentDataModule) -> None:
    """Refuse what no pilot can choose for.

    Raises:
        ValueError: If there is no VAT, no unlabelled example, or more than one device.
    """
    if "vat" not in cfg or not cfg.vat.eps:
        raise ValueError("choose_eps=true chooses vat.eps: add regularizer=vat, and a vat.eps > 0 to start from")
    if data.supervised:
        raise ValueError("choose_eps=true compares predictions of unlabelled examples, and there are none: choose vat.eps on validation")
    side_runs.refuse_several_devices(cfg, "choose_eps=true")


def jobs(cfg: DictConfig) -> Iterator[tuple[float, str, DictConfig]]:
    """Radius, name and configuration of each pilot run. All have the labels of the run itself."""
    steps = min(cfg.trainer.max_steps, max(LEAST_STEPS, cfg.trainer.max_steps // SHARE))
    for eps in (0.0, *(float(f"{factor * cfg.vat.eps:.3g}") for factor in FACTORS)):
        for number in range(INITIALISATIONS):
            job = side_runs.aside(cfg)
            if "seed" in job.data:
                job.data.seed = cfg.data.seed  # a number from now on, which the next line does not move
            if job.data.get("folds"):
                job.data.fold = 0  # a run of one fold; the labels of the others are trained on
            job.seed = (cfg.seed + 1 + number) % 2**32
            job.trainer.max_steps = steps
            for key, option, length in schedules(cfg):
                job[key][option] = max(1, length * steps // cfg.trainer.max_steps)
            job.vat.eps = eps
            if not eps:
                job.regularizers = []
            yield eps, f"eps-{eps:g}-{number}", job


def looked_at(cfg: DictConfig, data: ResidentDataModule, folder: Path, todo: list[tuple[float, str, DictConfig]]) -> Iterator[Pilot]:
    """What the networks of each radius say of the same unlabelled examples."""
    x, prior = honesty.unlabeled_inputs(data, EXAMPLES).cpu(), honesty.labels(data)
    described = records.describe(data)
    ball = {name: cfg.vat[name] for name in ("norm", "per") if isinstance(cfg.vat.get(name), str)}
    for eps in dict.fromkeys(eps for eps, _, _ in todo):
        paths = [folder / name / "checkpoints" / LAST for of, name, _ in todo if of == eps]
        yield pilot([_network(cfg, described, path) for path in paths], x, eps=eps, prior=prior, **ball)


def _network(cfg: DictConfig, described: dict[str, Any], path: Path) -> nn.Module:
    """The network of a pilot run, made as the configuration says: a user's model needs no permission here."""
    network = records.make_network(cfg.model, described)
    network.load_state_dict(records._network_state(read_checkpoint(path)))
    return network.eval()


def tell(choice: Choice, into: Path) -> None:
    """Print the table and what follows from it; write both as `pilot.json`, and the picture as `pilot.png`."""
    rows, sentences = choice.rows(), words(choice)
    table = Table("ε", "KL at a random r", "two networks disagree, %", "rarest class", "", title="Pilot runs", title_justify="left")
    for row in rows:
        mark = "chosen" if row["eps"] == choice.eps else "" if row["allowed"] or not row["eps"] else "excluded"
        spread = f"{100 * row['disagreement']:.1f} ± {100 * row['standard_error']:.1f}"
        table.add_row(f"{row['eps']:g}", f"{row['kl_random']:.2g}", spread, f"{row['smallest_share']:.2f}", mark)
    report.console.print(table)
    for sentence in sentences:
        report.console.print(sentence)
    into.mkdir(parents=True, exist_ok=True)
    found = {"eps": choice.eps, "sure": choice.sure, "rows": rows, "words": sentences}
    (into / "pilot.json").write_text(json.dumps(found, indent=1) + "\n")
    picture(choice).savefig(into / "pilot.png", dpi=130)
    report.console.print(f"picture: {into / 'pilot.png'}", "", soft_wrap=True)


def words(choice: Choice) -> list[str]:
    """What is chosen, why, and how sure it is."""
    rows = {row["eps"]: row for row in choice.rows()}
    radii, number = [eps for eps in rows if eps], choice.pilots[0].predictions.shape[1]
    rule = f"a random r changes predictions by at most {MOST_KL:g} nats and no class has less than {LEFT_OUT:g} of its share without VAT"
    if not choice.eps:
        return [
            f"every radius is excluded: at none {rule}. VAT does not help here, or needs a smaller radius. Training without it. "
            f"vat.eps={radii[0] / 4:.3g} choose_eps=true looks at smaller radii"
        ]
    found = [
        f"vat.eps={choice.eps:g} is the largest radius at which {rule}. If the {number} unlabelled examples are drawn again, "
        f"{100 * choice.sure:.0f} % of the draws choose it or a radius next to it"
    ]
    if choice.eps in (radii[0], radii[-1]):
        found.append(f"it is at the end of the candidates: vat.eps={choice.eps:g} choose_eps=true looks on both sides of it")
    if 0.0 in rows:
        found.append(_helps(rows[0.0], rows[choice.eps]))
    return found


def _helps(without: Mapping[str, float], chosen: Mapping[str, float]) -> str:
    """What disagreement says of VAT's use: networks that differ in their initial weights disagree about as often as they are wrong."""
    a, b = (f"{100 * row['disagreement']:.1f} ± {100 * row['standard_error']:.1f} %" for row in (chosen, without))
    difference = chosen["disagreement"] - without["disagreement"]
    error = math.hypot(chosen["standard_error"], without["standard_error"])
    said = f"two networks disagree on {a} of the unlabelled examples, without VAT on {b}"
    if difference > 2 * error:
        return f"{said}: VAT may do harm here. Compare with regularizer=none on a test set before you use it"
    return f"{said}: VAT helps" if difference < -2 * error else f"{said}: whether VAT helps cannot be told by so few examples"


def picture(choice: Choice) -> Figure:
    """KL at a random r, by which the radius is chosen, and disagreement, against the radius."""
    figure = Figure(figsize=(5.5, 5.0), layout="constrained")
    (upper, lower), rows = figure.subplots(2, 1, sharex=True), [row for row in choice.rows() if row["eps"]]
    radii = [row["eps"] for row in rows]
    upper.plot(radii, [row["kl_random"] for row in rows], "o-", color="#0072b2")
    upper.axhline(MOST_KL, color="#999999", linestyle=":", label=f"{MOST_KL:g} nats")
    upper.set(xscale="log", yscale="log", ylabel="KL at a random r, nats")
    values, errors = ([100 * row[name] for row in rows] for name in ("disagreement", "standard_error"))
    lower.errorbar(radii, values, yerr=errors, fmt="o-", color="#0072b2")
    for row in choice.rows():
        if not row["eps"]:
            lower.axhline(100 * row["disagreement"], color="#e69f00", linestyle="--", label="without VAT")
        elif row["eps"] == choice.eps:
            upper.axvline(row["eps"], color="#d55e00", alpha=0.5, label="chosen")
            lower.axvline(row["eps"], color="#d55e00", alpha=0.5)
    lower.set(xlabel="ε", ylabel="two networks disagree, %")
    lower.set_ylim(bottom=0)
    upper.legend(frameon=False)
    lower.legend(frameon=False)
    return figure
