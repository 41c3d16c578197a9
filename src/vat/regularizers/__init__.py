from vat.regularizers.adversarial import Adversarial
from vat.regularizers.base import Regularizer, by_unique_name, live
from vat.regularizers.class_balance import ClassBalance
from vat.regularizers.entropy import Entropy
from vat.regularizers.mean_teacher import MeanTeacher
from vat.regularizers.pi_model import PiModel
from vat.regularizers.published_vat import PublishedVAT
from vat.regularizers.random_perturbation import RandomPerturbation
from vat.regularizers.vat import VAT, local_distributional_smoothness

__all__ = [
    "VAT",
    "Adversarial",
    "ClassBalance",
    "Entropy",
    "MeanTeacher",
    "PiModel",
    "PublishedVAT",
    "RandomPerturbation",
    "Regularizer",
    "by_unique_name",
    "live",
    "local_distributional_smoothness",
]
