"""VAT on time series with an LSTM: 30 series with labels, 1000 without. The series are noisy waves of three shapes and any phase.

python examples/time_series.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat import VAT

torch.set_num_threads(1)  # the fastest for a small network
torch.manual_seed(0)


def waves(n: int) -> tuple[Tensor, Tensor]:
    """Series (n, 32, 1), time before channels, and their shapes (n,): 0 a sine, 1 a square, 2 a saw."""
    shape, phase = torch.randint(3, (n, 1)), torch.rand(n, 1)
    t = torch.arange(32) / 16 + phase
    forms = torch.stack([torch.sin(2 * torch.pi * t), torch.sign(torch.sin(2 * torch.pi * t)), 2 * (t % 1) - 1])
    series = forms.gather(0, shape[None].expand(1, n, 32))[0]
    return (series + 0.3 * torch.randn(n, 32))[..., None], shape[:, 0]


class Classifier(nn.Module):
    """An LSTM in both directions and a linear layer on the mean of its outputs over time."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 3) of series (N, T, 1)."""
        return self.head(self.lstm(x)[0].mean(1))


x, y = waves(30)
unlabeled, _ = waves(1000)
model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
vat = VAT(eps=1.0)  # a radius for each series; with per="token" for each time step

for step in range(201):
    pool = unlabeled[torch.randint(len(unlabeled), (64,))]
    supervised = F.cross_entropy(model(x), y)
    smoothness = vat(model, pool)
    optimizer.zero_grad()
    (supervised + smoothness).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: cross entropy {supervised.item():.3f}, LDS {smoothness.item():.4f}")

x, y = waves(500)
with torch.no_grad():
    error = (model(x).argmax(1) != y).float().mean().item()
print(f"test error {100 * error:.1f} %")
