"""`data.folds=k`: k runs. Each validates on another fold of the labelled examples, and their errors are pooled."""

from collections.abc import Mapping

from omegaconf import DictConfig

from vat.data.datamodule import ResidentDataModule
from vat.evaluation.few_examples import interval
from vat.runs import folders, report, side_runs
from vat.runs.side_runs import Train

FOLDER = folders.OUTPUTS / "folds"
WEIGHED = ("val/accuracy", "val/cross_entropy")
"""Metrics that can be pooled, because they are means over examples. A calibration error is not."""


def wanted(cfg: DictConfig) -> bool:
    """Whether a job trains folds first. A run of one fold does not."""
    return bool(cfg.data.get("folds")) and cfg.data.get("fold") is None


def pooled(cfg: DictConfig, data: ResidentDataModule, settings: str, *, train: Train) -> dict[str, float]:
    """Validation metrics over all folds.

    Args:
        cfg: Settings. Values that are computed from the data are numbers, the same for every fold.
        data: After `setup`, without a validation part.
        settings: Digest of the settings, and name of the folder of the runs. So the same command resumes them.
        train: Function that trains one run.

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
    """Metrics over all folds, with the number of examples and of folds.

    Args:
        of_fold: Metrics of each fold. A fold may have no validation example.

    Raises:
        ValueError: If no fold has a validation example.
    """
    counted = [metrics for metrics in of_fold.values() if metrics.get("val/examples")]
    number = sum(metrics["val/examples"] for metrics in counted)
    if not number:
        raise ValueError("data.folds: each class has examples in one fold only, so none can be held out. Label more examples")
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
