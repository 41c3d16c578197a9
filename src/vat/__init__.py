"""Virtual adversarial training: a term that makes any model smooth around every input, labelled or not.

    vat = VAT(eps=2.0)
    loss = F.cross_entropy(model(x), y) + vat(model, x)

The core needs torch alone. `vat.callback`, `vat.classifier`, the data modules of `vat.data` and what draws and logs need Lightning and
more, and are imported by name.
"""

from vat.regularizers import (
    VAT,
    Adversarial,
    ClassBalance,
    Entropy,
    MeanTeacher,
    PiModel,
    RandomPerturbation,
    Regularizer,
    local_distributional_smoothness,
)
from vat.step import Step

__all__ = [
    "VAT",
    "Adversarial",
    "ClassBalance",
    "Entropy",
    "MeanTeacher",
    "PiModel",
    "RandomPerturbation",
    "Regularizer",
    "Step",
    "local_distributional_smoothness",
]
