"""VAT in segmentation of discs and squares in noise. Void pixels count neither in the loss nor in r.

python examples/segmentation.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat import VAT

VOID = 255
torch.set_num_threads(1)  # the fastest for a small network
torch.manual_seed(0)


def scenes(n: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 24, 24) and labels (n, 24, 24): 0 is ground, 1 a disc, 2 a square. Columns from 20 on are void."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    centers = torch.randint(5, 17, (n, 2, 2)).float()
    disc = (rows - centers[:, 0, 0, None, None]) ** 2 + (columns - centers[:, 0, 1, None, None]) ** 2 < 16
    square = ((rows - centers[:, 1, 0, None, None]).abs() < 4) & ((columns - centers[:, 1, 1, None, None]).abs() < 4)
    labels = torch.where(disc, 1, torch.where(square, 2, 0))
    images = (disc.float() - square.float())[:, None] + 0.7 * torch.randn(n, 1, 24, 24)
    labels[..., 20:] = VOID
    return images, labels


model = nn.Sequential(
    *(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU()),
    nn.Conv2d(16, 3, 1),  # logits (N, 3, H, W)
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
vat = VAT(eps=5.0)
x, y = scenes(8)

for step in range(101):
    pool, labels = scenes(16)  # of these labels, VAT uses only the void pixels
    supervised = F.cross_entropy(model(x), y, ignore_index=VOID)
    smoothness = vat(model, pool, mask=(labels != VOID)[:, None])  # (N, 1, H, W)
    optimizer.zero_grad()
    (supervised + smoothness).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: cross entropy {supervised.item():.3f}, LDS {smoothness.item():.4f}")

model.eval()
x, y = scenes(100)
with torch.no_grad():
    wrong = (model(x).argmax(1) != y) & (y != VOID)
print(f"test error {100 * wrong.sum().item() / (y != VOID).sum().item():.1f} %")
