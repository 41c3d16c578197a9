"""A loss may be finite where a gradient is not: an infinite input behind a tanh."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from vat import RandomPerturbation
from vat.lightning.callback import RegularizerCallback
from vat.lightning.training import refuse_gradients_not_finite


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path, value, accumulate):
    x = torch.ones(8, 3)
    x[6, 1] = value
    rows = torch.utils.data.TensorDataset(x, torch.zeros(8, dtype=torch.long))
    module = Module()
    loss = nn.functional.cross_entropy(module(x), torch.zeros(8, dtype=torch.long))
    assert loss.isfinite()
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[RegularizerCallback(RandomPerturbation(eps=0.1))],
    )
    with pytest.raises(FloatingPointError, match=r"gradient of network\.0\.weight is not finite at optimizer step \d, but the loss is"):
        trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=2))
    assert all(p.isfinite().all() for p in module.parameters())


class Trainer:
    precision, global_step, checkpoint_callbacks, strategy = "32-true", 3, (), None


def test_finite_gradients_pass_however_large():
    network = nn.Linear(2, 2)
    refuse_gradients_not_finite(Trainer, network)  # there are no gradients yet
    network.weight.grad = torch.full((2, 2), 1e30)  # their squares overflow
    refuse_gradients_not_finite(Trainer, network)
    network.weight.grad[1, 1] = math.nan
    with pytest.raises(FloatingPointError, match="gradient of weight"):
        refuse_gradients_not_finite(Trainer, network)
