"""Functions that make a `Figure` from data. They read and write no files."""

from vat.plots.course import curves_figure
from vat.plots.images import adversarial_figure, perturbation_figure
from vat.plots.plane import plane_figure
from vat.plots.predictions import class_error_figure, confusion_figure, reliability_figure
from vat.plots.robustness import robustness_figure, study_figure
from vat.plots.smoothness import feature_figure, kl_figure
from vat.plots.sweep import sweep_figure

__all__ = [
    "adversarial_figure",
    "class_error_figure",
    "confusion_figure",
    "curves_figure",
    "feature_figure",
    "kl_figure",
    "perturbation_figure",
    "plane_figure",
    "reliability_figure",
    "robustness_figure",
    "study_figure",
    "sweep_figure",
]
