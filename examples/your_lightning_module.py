"""VAT for any LightningModule: one callback. The module's code does not change.

python examples/your_lightning_module.py
"""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vat import VAT
from vat.data.sets.shipped import read_digits
from vat.lightning import RegularizerCallback


class YourModule(pl.LightningModule):
    """Any module whose `training_step` returns a loss and whose `forward` gives logits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.layers(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("test/error", (self(x).argmax(1) != y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the fastest for a small network
    pl.seed_everything(0)
    images, targets = read_digits()
    x, y = images.flatten(1).float(), targets.long()
    x = (x - x.mean()) / x.std()
    order = torch.randperm(len(x))
    few, test = order[:100], order[1000:]
    trainer = pl.Trainer(
        max_epochs=100,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[RegularizerCallback(VAT(eps=2.0))],  # the one line
    )
    module = YourModule()
    trainer.fit(module, DataLoader(TensorDataset(x[few], y[few]), batch_size=50, shuffle=True))
    trainer.test(module, DataLoader(TensorDataset(x[test], y[test]), batch_size=1000))
