"""VAT in your own loop: two lines. Real digits, 50 of them with labels.

python examples/bare_loop.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from vat import VAT
from vat.data.sets.shipped import read_digits

torch.set_num_threads(1)  # the fastest for a small network
torch.manual_seed(0)
images, targets = read_digits()
x, y = images.flatten(1).float(), targets.long()
x = (x - x.mean()) / x.std()
order = torch.randperm(len(x))
labeled, unlabeled, test = order[:50], order[:1000], order[1000:]

model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
vat = VAT(eps=2.0)  # line one

for step in range(301):
    pool = unlabeled[torch.randint(len(unlabeled), (128,))]
    supervised = F.cross_entropy(model(x[labeled]), y[labeled])
    smoothness = vat(model, x[pool])  # line two: no labels
    optimizer.zero_grad()
    (supervised + smoothness).backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: cross entropy {supervised.item():.3f}, LDS {smoothness.item():.3f}")

model.eval()
with torch.no_grad():
    error = (model(x[test]).argmax(1) != y[test]).float().mean().item()
print(f"test error {100 * error:.1f} %")
