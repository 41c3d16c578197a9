"""What a run says of numbers that mean little, and of classes that it leaves out."""

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from vat.data.datamodule import EVALUATION_BATCH_SIZE, ResidentDataModule
from vat.data.loader import EvalLoader
from vat.data.splits import evenly
from vat.evaluation.few_examples import left_out, warning_of_few
from vat.functional import as_classes
from vat.lightning.classifier import Classifier
from vat.runs import report

MOST_OF_THE_POOL = 1000
"""Examples of the pool whose predictions are counted: a class of 10 % is then known to ± 2 points."""


@rank_zero_only
def warn_of_few(data: ResidentDataModule) -> None:
    """Say before training what a small validation part means."""
    if said := warning_of_few(len(data.split.validation)):
        report.console.print(said, style="yellow")


def counts(classifier: Classifier) -> dict[str, int]:
    """How many examples the accuracies of a run are of, under `val/examples` and `test/examples`."""
    found = {"val": classifier.val_counts, "test": classifier.confusion}
    return {f"{stage}/examples": int(of.sum()) for stage, of in found.items() if of is not None}


@torch.no_grad()
def notes(classifier: Classifier, data: ResidentDataModule) -> list[str]:
    """A sentence for each class that a trained network leaves out, in validation or in the unlabelled pool. Every rank calls it."""
    found = []
    if classifier.val_counts is not None:
        found += left_out(classifier.val_counts.sum(0), classifier.val_counts.sum(1), data.class_names, where="validation")
    if not _as_labels(data):
        return found
    network, device = classifier.network.eval(), next(classifier.network.parameters()).device
    loader = EvalLoader(data.x, data.y, evenly(data.split.unlabeled, MOST_OF_THE_POOL), batch_size=EVALUATION_BATCH_SIZE)
    chosen = torch.cat([as_classes(network(x.to(device))).argmax(1).cpu() for x, _ in loader])
    predicted, labels = (torch.bincount(of.cpu(), minlength=data.num_classes) for of in (chosen, data.y[data.split.labeled]))
    return found or left_out(predicted, labels, data.class_names, where="unlabelled examples")


def _as_labels(data: Any) -> bool:
    """Whether the pool is meant to have its classes in the labels' proportions."""
    chosen = data.labeled_classes is not None or data.unlabeled_classes is not None or data.imbalance != 1
    return not (data.supervised or chosen)
