"""VAT in regression: 30 noisy labels and 1000 inputs without labels. VAT compares two outputs as two normal distributions.

A regression output decides nothing, so there is no decision boundary. The default direction is then "finite_difference", the papers' power
iteration: it finds the r that changes the output most. In half precision use "exact", because finite differences are noise there.

python examples/regression.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat import VAT
from vat.functional import Gaussian

NOISE, REGIMES, INPUTS = 0.5, 4, 10  # NOISE: standard deviation of a label, the unit in which VAT measures a change
torch.set_num_threads(1)  # the fastest for a small network
torch.manual_seed(0)
centers, levels = torch.randn(REGIMES, INPUTS), torch.randn(REGIMES)


def measurements(n: int) -> tuple[Tensor, Tensor]:
    """Sensors (n, 10) of a machine in one of four regimes, and its product (n,): the regime's level plus a tenth of a sensor."""
    regime = torch.randint(REGIMES, (n,))
    x = centers[regime] + 0.5 * torch.randn(n, INPUTS)
    return x, levels[regime] + 0.1 * x[:, 0]


x, y = measurements(30)
y = y + NOISE * torch.randn(30)
unlabeled, _ = measurements(1000)

model = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
vat = VAT(eps=1.0, divergence=Gaussian(sigma=NOISE))

for step in range(301):
    pool = unlabeled[torch.randint(len(unlabeled), (128,))]
    supervised = F.mse_loss(model(x), y) / (2 * NOISE**2)  # in nats, like VAT
    smoothness = vat(model, pool)
    optimizer.zero_grad()
    (supervised + smoothness).backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {supervised.item():.3f}, LDS {smoothness.item():.4f}")

x, y = measurements(1000)
with torch.no_grad():
    error = (model(x) - y).square().mean().sqrt().item()
print(f"test RMSE {error:.3f}")
