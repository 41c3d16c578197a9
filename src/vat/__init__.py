"""Virtual adversarial training: a loss term that makes any model smooth around every input, with or without a label.

    vat = VAT(eps=2.0)
    loss = F.cross_entropy(model(x), y) + vat(model, x)

The core needs torch only. `vat.lightning` and the data modules of `vat.data` need Lightning. Only `vat.runs` imports Hydra. It serves the
commands.
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

__version__ = "0.2.0"

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
