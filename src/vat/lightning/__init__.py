"""VAT in Lightning: a callback for any LightningModule, and the project's own LightningModule."""

from vat.lightning.callback import RegularizerCallback
from vat.lightning.classifier import Classifier

__all__ = ["Classifier", "RegularizerCallback"]
