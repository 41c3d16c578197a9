"""Networks inside DDP and Fabric: a step is the same as without them, however the network is passed."""

import signal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forks import two_ranks
from lightning_fabric import Fabric
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vat import VAT
from vat.step import Key, Step

ROWS, STEPS = 8, 3
DIRECTIONS = ("random_margin", "finite_difference", "exact", "ascent")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def trained(forward, module, parameters, rows, rank, direction):
    """Train a few steps on these rows of a batch."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, 6, dtype=torch.float64, generator=generator), torch.arange(ROWS) % 3
    optimizer = torch.optim.SGD(parameters, lr=0.3)
    for number in range(STEPS):
        step = Step(forward, x[rows], module=module, key=Key(5, number, rank), start=rows.start, total=ROWS)
        loss = F.cross_entropy(forward(x[rows]), y[rows]) + VAT(1.0, direction=direction).term(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


SPELLINGS = {
    "wrapper": lambda ddp: (ddp, None),
    "function": lambda ddp: ((lambda x: ddp(x)), ddp),
    "function of the inner": lambda ddp: ((lambda x: ddp(x)), [ddp, ddp.module]),
}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    found = {}
    for direction in DIRECTIONS:
        for static in (False, True):
            for spelling, spell in SPELLINGS.items():
                ddp = DistributedDataParallel(network(), static_graph=static)
                trained(*spell(ddp), ddp.parameters(), slice(4 * rank, 4 * rank + 4), rank, direction)
                found[direction, static, spelling] = [p.detach() for p in ddp.parameters()]
    torch.save(found, folder / f"{rank}.pt")


def test_ranks_train_as_one_process_whether_the_graph_is_static_and_however_the_network_is_named(tmp_path):
    def job(rank):
        signal.alarm(300)
        work(rank, tmp_path)

    two_ranks(job)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for direction in DIRECTIONS:
        one = network()
        trained(one, None, one.parameters(), slice(0, ROWS), 0, direction)
        for key in (key for key in ranks[0] if key[0] == direction):
            for a, b, p in zip(ranks[0][key], ranks[1][key], one.parameters(), strict=True):
                assert torch.equal(a, b), key
                # The length of the finite difference follows the rank's own rows.
                tolerance = 1e-5 if direction == "finite_difference" else 1e-10
                torch.testing.assert_close(a, p.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("direction", [None, "exact"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabrics_wrapper_gives_what_the_network_gives(precision, direction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    wrapped = fabric.setup(model)
    x = torch.randn(16, 6)
    with fabric.autocast():
        wanted = VAT(1.0, direction=direction).term(Step(model, x, key=Key(1)))
    for forward, module in ((wrapped, None), (lambda x: wrapped(x), wrapped)):
        term = VAT(1.0, direction=direction).term(Step(forward, x, module=module, key=Key(1)))
        torch.testing.assert_close(term, wanted, rtol=0.1 if precision == "bf16-mixed" else 1e-6, atol=0)
    if precision == "bf16-mixed":
        with pytest.raises(RuntimeError, match=r"fabric\.backward"):
            wrapped(x).sum().backward()  # Fabric's check works as before
    else:
        wrapped(x)
    fabric.backward(VAT(1.0, direction=direction)(wrapped, x))
    assert model[0].weight.grad.abs().max() > 0
    assert model[1].num_batches_tracked == 1  # from the one ordinary pass
