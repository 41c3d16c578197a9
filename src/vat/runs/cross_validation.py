"""`data.folds=k`: k runs, each with another fold of the labelled examples for validation, whose errors are pooled."""

from collections.abc import Mapping

from omegaconf import DictConfig

from vat.data.datamodule import ResidentDataModule
from vat.evaluation.few_examples import interval
from vat.runs import folders, report, side_runs
from vat.runs.side_runs import Train

FOLDER = folders.OUTPUTS / "folds"
WEIGHED = ("val/accuracy", "val/cross_entropy")
"""Means over examples, which can be pooled; a calibration error cannot."""


def wanted(cfg: DictConfig) -> bool:
    """Whether a job is to train folds first; a run of one fold is not."""
    return bool(cfg.data.get("folds")) and cfg.data.get("fold") is None


def pooled(cfg: DictConfig, data: ResidentDataModule, settings: str, *, train: Train) -> dict[str, float]:
    """Validation metrics over all folds.

    Args:
        cfg: With numbers for what is computed from the data, the same for every fold.
        data: After `setup`, without a validation part.
        settings: Digest of the settings. The runs are kept in a folder of this name, so that the same command resumes them.
        train: Trains one run.

    Raises:
        ValueError: If there is more than one device, or no example to validate with.
    """
    side_runs.refuse_several_devices(cfg, f"data.folds={cfg.data.folds}")
    folder, number = FOLDER / settings, len(data.split.labeled)
    report.console.print(
        f"data.folds={cfg.data.folds}: {cfg.data.folds} runs, each with another fold of the labelled examples for validation, then one "
        f"that trains on all {number} labels. The runs of the folds are kept in {folder}; the same command resumes them"
    )
    jobs = {}
    for fold in range(cfg.data.folds):
        job = jobs[f"fold-{fold}"] = side_runs.aside(cfg)
        job.data.fold = fold
    found = pool(side_runs.trained(jobs, folder, train=train, description="folds"))
    report.console.print(said(found), "")
    return found


def pool(of_fold: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics over all folds, and how many examples and folds they are of.

    Args:
        of_fold: Metrics of each fold; a fold may have no example to validate with.

    Raises:
        ValueError: If none has.
    """
    counted = [metrics for metrics in of_fold.values() if metrics.get("val/examples")]
    number = sum(metrics["val/examples"] for metrics in counted)
    if not number:
        raise ValueError("data.folds: each class has its examples in one fold only, so that none can be held out; label more")
    means = {name: sum(m[name] * m["val/examples"] for m in counted) / number for name in WEIGHED}
    return {**means, "val/examples": number, "val/folds": len(of_fold)}


def said(found: Mapping[str, float]) -> str:
    """The pooled error with its count and interval."""
    number = int(found["val/examples"])
    wrong = round((1 - found["val/accuracy"]) * number)
    return (
        f"validation error over {found['val/folds']:.0f} folds: {100 * wrong / number:.2f} % ({wrong} of {number}; "
        f"95 % interval {interval(wrong, number)})"
    )
