"""The report on the direction: whether VAT works on this network."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor, nn

from vat import VAT, files
from vat.data.loader import EvalLoader
from vat.data.splits import evenly
from vat.evaluation.clean import NOT_FINITE
from vat.evaluation.diagnosis import diagnose, interpretation, looks_for_r
from vat.evaluation.few_examples import left_out
from vat.functional import as_classes
from vat.runs import records, report
from vat.runs.subject import Subject
from vat.runs.targets import RefusedError
from vat.step import Key

EXAMPLES = 512
"""Default number of examples. The search for the largest KL needs about 600 passes of each."""

WORDS = {
    "kl_at_zero": "KL without r, in training mode; should be 0",
    "kl_random": "KL at a random r",
    "lds": "KL at r",
    "kl_maximum": "KL at the worst r that a long search finds",
    "curvature": "curvature along r, nats per squared unit",
    "eigenvalue": "the Hessian's top eigenvalue",
    "cosine": "|cosine| of r to its eigenvector",
    "flip_rate": "decisions that r changes",
    "margin": "margin, in logits",
}


def judged(config: Mapping[str, Any], *, allow_targets: Sequence[str] = ()) -> VAT | None:
    """The first `VAT` of a run at its final radius. None if the run has none, or only `PublishedVAT`.

    Raises:
        RefusedError: If its settings name a class or function that is neither of this project nor of an allowed package.
    """
    for regularizer in records.regularizers_of(config, allow_targets=allow_targets):
        if looks_for_r(regularizer):
            regularizer.num_updates = regularizer.eps_steps
            return regularizer
    return None


def measure(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], vat: VAT, *, seed: int, device: torch.device) -> dict[str, Any]:
    """Measure the values of `diagnose`: mean and standard error over the examples, and a sentence for each abnormal value.

    Args:
        network: Network x -> logits.
        batches: Batches of inputs (N, …) and labels, which are not used.
        vat: VAT to judge.
        seed: Seed of all random draws.
        device: Device of the network.
    """
    found: dict[str, list[Tensor]] = {}
    for number, (x, _) in enumerate(batches):
        for name, value in diagnose(network, x.to(device), vat, key=Key(seed, number), class_dim=1).items():
            found.setdefault(name, []).append(value.double().cpu())
    values = {name: torch.cat(parts) for name, parts in found.items()}
    means = {name: value.mean().item() for name, value in values.items()}
    errors = {name: (value.std() / len(value) ** 0.5).item() if len(value) > 1 else None for name, value in values.items()}
    return {
        "examples": len(values["lds"]),
        "mean": means,
        "standard_error": errors,
        "interpretation": interpretation(means, direction=getattr(vat.direction, "__name__", None)),
    }


def show(found: Mapping[str, Any], vat: VAT, unit: str, path: Path) -> None:
    """Write the report as JSON, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    direction = getattr(vat.direction, "__name__", str(vat.direction))
    judged = {"direction": direction, "eps": vat.current_eps, "unit": unit}
    files.write_json(path, {**judged, **found})
    table = Table(show_header=False, title=f"Direction {direction}, ε = {vat.current_eps:g} ({unit}), {found['examples']} examples")
    for name, words in WORDS.items():
        if name in found["mean"]:
            error = found["standard_error"][name]
            table.add_row(words, f"{found['mean'][name]:.4g}" + ("" if error is None else f" ± {error:.2g}"))
    share = found["mean"]["lds"] / found["mean"]["kl_maximum"] if found["mean"]["kl_maximum"] else float("nan")
    table.add_row("share of the largest KL that r reaches", f"{100 * share:.0f} %")
    report.console.print(table)
    for sentence in found["interpretation"] or ["no value is abnormal"]:
        report.console.print(sentence, style="yellow" if found["interpretation"] else "", markup=False)
    report.console.print(f"file: {report.shown(path.absolute())}")


@torch.no_grad()
def _left_out(of: Subject, batches: Iterable[tuple[Tensor, Tensor]]) -> list[str]:
    """A sentence for each class that the network never predicts. A direction may work although two classes have merged.

    Raises:
        ValueError: If the network's outputs are not finite.
    """
    names, counts = of.record["class_names"], []
    for x, y in batches:
        logits = as_classes(of.network(x.to(of.device)))
        if not logits.isfinite().all():
            raise ValueError(NOT_FINITE.format("the network"))
        chosen = logits.argmax(1).cpu()
        counts.append(torch.stack([torch.bincount(rows.cpu(), minlength=len(names)) for rows in (chosen, y)]))
    predicted, labels = torch.stack(counts).sum(0)
    return left_out(predicted, labels, names, where="test examples")


def on_direction(cfg: DictConfig, of: Subject) -> None:
    """Judge the VAT of the checkpoint's run, or the default VAT if it had none. Prints a table and writes `evaluation/direction.json`."""
    rows = evenly(of.rows, EXAMPLES) if cfg.limit is None else of.rows
    batches = EvalLoader(of.data.x, of.data.y, rows, batch_size=min(cfg.batch_size, 128))
    config = of.record["config"]
    try:
        vat = judged(config, allow_targets=cfg.allow_targets)
    except RefusedError as error:
        raise ValueError(f"{cfg.ckpt_path}: {error}") from error
    if vat is None:
        published = any(node["_target_"].endswith(".PublishedVAT") for node in config["regularizers"])
        why = "The r of PublishedVAT cannot be judged" if published else "The run had no VAT"
        report.console.print(f"{why}. This report judges the default direction, at the radius of the monitored LDS.", style="yellow")
        vat = VAT(of.data.lds_eps)
    left = _left_out(of, batches)
    found = measure(of.network, batches, vat, seed=cfg.seed, device=of.device)
    found["interpretation"] += left
    show(found, vat, of.data.unit, of.run / "evaluation" / "direction.json")
