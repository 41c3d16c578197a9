"""Warnings about a run, such as few validation examples or classes left out, and statistics of unlabelled examples."""

import math
import re
from collections.abc import Sequence

import torch
from hydra.core.hydra_config import HydraConfig
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vat import VAT
from vat.data.datamodule import ResidentDataModule
from vat.data.loader import as_input
from vat.data.splits import evenly
from vat.evaluation.choosing import Pilot, pilot
from vat.evaluation.diagnosis import looks_for_r
from vat.evaluation.few_examples import left_out, warning_of_few
from vat.layers import is_divided
from vat.lightning.classifier import Classifier
from vat.runs import report, schema

READ = {
    *("data", "model", "regularizers", "optimizer", "scheduler", "trainer", "logger"),
    *("seed", "ckpt_path", "test", "ema", "reestimate_batch_norm", "vat_if_classes_touch", "choose_eps", "figures"),
    *("keep_freed_memory", "channels_last", "compile", "lds_eps"),
}
"""The settings of a run that the code reads. Other settings count if one of these refers to them, as `regularizers` to `${vat}`."""
RADII = ("vat", "adversarial", "random_perturbation")
"""Settings of regularizers with a radius."""
MOST_OF_THE_POOL = 1000
"""Examples of the pool that are used. The share of a class of 10 % is then known to ± 2 points."""
TOO_SMALL = 10
"""Factor below the radius that fits the data at which a radius causes a warning."""
MOST_NUMBERS = 2**25
"""Most numbers in these examples, 128 MiB. So there are fewer examples if inputs are large."""


@rank_zero_only
def warn_of_few(data: ResidentDataModule) -> None:
    """Warn before training if the validation part is small."""
    if said := warning_of_few(len(data.split.validation)):
        report.console.print(said, style="yellow")


@rank_zero_only
def warn_of_radius(classifier: Classifier, data: ResidentDataModule) -> None:
    """Warn before training if a radius is far below the one that fits the data. VAT would be a negligible part of the loss."""
    for name, regularizer in classifier.regularizers.items():
        eps = regularizer.eps if looks_for_r(regularizer) else 0.0
        if 0 < TOO_SMALL * eps < data.lds_eps:
            report.console.print(
                f"{name}.eps={eps:g} is {data.lds_eps / eps:.0f} times smaller than {data.lds_eps:.3g}, which fits these data "
                f"({data.unit}): {name} hardly changes the training. Raise it, or leave it out of the command",
                style="yellow",
            )


@rank_zero_only
def tell_of_tuned(cfg: DictConfig) -> None:
    """Warn if an experiment has tuned values, but none for the chosen data or regularizer, or if they are used on another file."""
    if not HydraConfig.initialized():  # a call from Python
        return
    choices, typed = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
    experiment, data = choices.get("experiment"), choices.get("data")
    tuned_for = schema.tuned_for().get(str(experiment), data)
    if data != tuned_for:
        report.console.print(
            f"experiment={experiment}: its tuned values (conf/tuned.yaml) are for data={tuned_for}, and are not used for data={data}. Its "
            f"other settings are, as data.num_labeled={cfg.data.get('num_labeled')} and trainer.max_steps={cfg.trainer.max_steps}",
            style="yellow",
        )
    elif choices.get("tuned") in schema.tuned() and any(word.startswith(("data.train=", "data.dir=", "data._target_=")) for word in typed):
        report.console.print(
            f"experiment={experiment}: its values in conf/tuned.yaml are tuned for its own file, and are used for yours", style="yellow"
        )
    elif experiment in schema.tuned_for() and choices.get("tuned") not in schema.tuned():
        names = [name for name in RADII if name in cfg and not any(word.startswith(f"{name}.eps=") for word in typed)]
        if names:
            radii = " and ".join(f"{name}.eps={cfg[name].eps}" for name in names)
            report.console.print(
                f"experiment={experiment} has no tuned values for regularizer={choices.get('regularizer')}: {radii} is a default",
                style="yellow",
            )


def unused(cfg: DictConfig) -> list[str]:
    """Settings that nothing reads and no other setting refers to, such as `eps` for `vat.eps`. Their values have no effect."""
    referred = set(re.findall(r"\$\{(\w+)[.}]", OmegaConf.to_yaml(cfg)))
    return [str(name) for name in cfg if name not in READ | referred]


@rank_zero_only
def tell_of_unused(names: Sequence[str], cfg: DictConfig) -> None:
    """Warn before training about settings without effect."""
    if names:
        inside = {name: [f"{part}.{name}" for part, node in cfg.items() if isinstance(node, DictConfig) and name in node] for name in names}
        meant = [f"{name} (there is {' and '.join(places)})" if places else name for name, places in inside.items()]
        report.console.print(f"{', '.join(meant)}: nothing in this run uses {'it' if len(names) == 1 else 'them'}", style="yellow")


def unlabeled_inputs(data: ResidentDataModule, most: int = MOST_OF_THE_POOL) -> Tensor:
    """Some unlabelled inputs of the pool. The choice is the same each time."""
    rows = data.split.unlabeled[~torch.isin(data.split.unlabeled, data.split.labeled)]
    rows = evenly(rows, min(most, max(50, MOST_NUMBERS // math.prod(data.input_shape))))
    return as_input(data.x[rows.to(data.y.device)]).to(data.y.device)


def labels(data: ResidentDataModule) -> Tensor:
    """Number of labelled examples of each class, (C,)."""
    return torch.bincount(data.y[data.split.labeled.to(data.y.device)].cpu(), minlength=data.num_classes)


@torch.no_grad()
def of_the_pool(classifier: Classifier, data: ResidentDataModule) -> Pilot | None:
    """Predictions of a trained network for unlabelled examples. None without any, or if the network is divided among processes."""
    if data.supervised or is_divided(classifier.network):
        return None
    network = classifier.network.to(data.y.device).eval()  # a trainer leaves it on the CPU
    vat = next((r for r in classifier.regularizers.values() if looks_for_r(r)), VAT(0.0))
    return pilot([network], unlabeled_inputs(data), eps=vat.current_eps, prior=labels(data), norm=vat.norm, per=vat.per)


def counts(classifier: Classifier, pool: Pilot | None) -> dict[str, float]:
    """The number of examples behind each accuracy, and statistics of unlabelled examples, by the names of metrics."""
    parts = {"val": classifier.val_counts, "test": classifier.confusion}
    found: dict[str, float] = {"val/examples": 0}
    found |= {f"{stage}/examples": int(of.sum()) for stage, of in parts.items() if of is not None}
    if pool is not None:
        found |= {"pool/kl_random": float(pool.kl_random.mean()), "pool/smallest_share": pool.smallest_share}
    return found


def notes(classifier: Classifier, data: ResidentDataModule, pool: Pilot | None) -> list[str]:
    """Sentences on classes that a trained network leaves out, in validation or otherwise in the unlabelled pool."""
    found = []
    if classifier.val_counts is not None:
        found = left_out(classifier.val_counts.sum(0), classifier.val_counts.sum(1), data.class_names, where="validation")
    # Labels of some classes, or of a chosen imbalance, are not meant to be as frequent as in the pool.
    as_labels = data.labeled_classes is None and data.unlabeled_classes is None and data.imbalance == 1
    if found or pool is None or not as_labels:
        return found
    predicted = torch.bincount(pool.predictions.flatten(), minlength=data.num_classes)
    return left_out(predicted, labels(data), data.class_names, where="unlabelled examples")
