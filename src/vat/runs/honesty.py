"""What a run says of numbers that mean little, of classes that it leaves out, and of unlabelled examples."""

import math

import torch
from hydra.core.hydra_config import HydraConfig
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig
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

MOST_OF_THE_POOL = 1000
"""Examples of the pool that are looked at: a class of 10 % is then known to ± 2 points."""
TOO_SMALL = 10
"""So many times below the radius that fits the data, a radius is worth a sentence."""
MOST_NUMBERS = 2**25
"""Numbers in them, 128 MiB, of which there are fewer if inputs are large."""


@rank_zero_only
def warn_of_few(data: ResidentDataModule) -> None:
    """Say before training what a small validation part means."""
    if said := warning_of_few(len(data.split.validation)):
        report.console.print(said, style="yellow")


@rank_zero_only
def warn_of_radius(classifier: Classifier, data: ResidentDataModule) -> None:
    """Say before training if a radius is far below the one that fits the data: VAT would be a negligible part of the loss."""
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
    """Say if an experiment's tuned values are not used, as they are for other data, or are used on a file that nobody tuned them for."""
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


def unlabeled_inputs(data: ResidentDataModule, most: int = MOST_OF_THE_POOL) -> Tensor:
    """Some inputs of the pool without label, the same each time."""
    rows = data.split.unlabeled[~torch.isin(data.split.unlabeled, data.split.labeled)]
    rows = evenly(rows, min(most, max(50, MOST_NUMBERS // math.prod(data.input_shape))))
    return as_input(data.x[rows.to(data.y.device)]).to(data.y.device)


def labels(data: ResidentDataModule) -> Tensor:
    """How many labelled examples each class has, (C,)."""
    return torch.bincount(data.y[data.split.labeled.to(data.y.device)].cpu(), minlength=data.num_classes)


@torch.no_grad()
def of_the_pool(classifier: Classifier, data: ResidentDataModule) -> Pilot | None:
    """What a trained network says of unlabelled examples; None if there are none, or if the network is divided among processes."""
    if data.supervised or is_divided(classifier.network):
        return None
    network = classifier.network.to(data.y.device).eval()  # a trainer leaves it on the CPU
    vat = next((r for r in classifier.regularizers.values() if looks_for_r(r)), VAT(0.0))
    return pilot([network], unlabeled_inputs(data), eps=vat.current_eps, prior=labels(data), norm=vat.norm, per=vat.per)


def counts(classifier: Classifier, pool: Pilot | None) -> dict[str, float]:
    """How many examples the accuracies of a run are of, and what unlabelled examples say, by the names of metrics."""
    parts = {"val": classifier.val_counts, "test": classifier.confusion}
    found: dict[str, float] = {"val/examples": 0}
    found |= {f"{stage}/examples": int(of.sum()) for stage, of in parts.items() if of is not None}
    if pool is not None:
        found |= {"pool/kl_random": float(pool.kl_random.mean()), "pool/smallest_share": pool.smallest_share}
    return found


def notes(classifier: Classifier, data: ResidentDataModule, pool: Pilot | None) -> list[str]:
    """A sentence for each class that a trained network leaves out, in validation or else in the unlabelled pool."""
    found = []
    if classifier.val_counts is not None:
        found = left_out(classifier.val_counts.sum(0), classifier.val_counts.sum(1), data.class_names, where="validation")
    # Labels of some classes, or of a chosen imbalance, are not meant to be as frequent as in the pool.
    as_labels = data.labeled_classes is None and data.unlabeled_classes is None and data.imbalance == 1
    if found or pool is None or not as_labels:
        return found
    predicted = torch.bincount(pool.predictions.flatten(), minlength=data.num_classes)
    return left_out(predicted, labels(data), data.class_names, where="unlabelled examples")
