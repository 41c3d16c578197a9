"""Two processes train as one: gradients under DDP and FSDP2, the order after a restart with more or fewer, and a rank that dies."""

import copy
import csv
import json
import os
import socket
from pathlib import Path

import networks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forks import two_ranks
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from vat import VAT, Entropy
from vat.data.loader import ResidentLoader, share
from vat.directions import DIRECTIONS
from vat.regularizers import live
from vat.runs import report, training
from vat.step import Key, Step

ROWS = 7  # two processes cannot share them evenly
KEY = Key(5, 3)


def examples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 6, dtype=torch.float64, generator=generator), torch.arange(ROWS) % 3


def network():
    return networks.network(6)


def backward(forward, regularizers, rank, world, *, apart=False):
    """Gradients of this rank's part of cross entropy and terms. The weight of a part is its share of the rows."""
    x, y = examples()
    mine = share(ROWS, rank, world)
    rows = slice(mine.start, mine.stop)
    part = len(mine) * world / ROWS

    def plain():
        return part * F.cross_entropy(forward(x[rows]), y[rows])

    if apart:
        plain().backward()
    step = Step(forward, x[rows], key=Key(KEY.seed, KEY.micro_step, rank), start=mine.start, total=ROWS, live=live(regularizers))
    terms = [regularizer.term(step) for regularizer in regularizers]  # before the plain pass, which comes first in the trainer
    loss = part * torch.stack(terms).sum()
    (loss if apart else plain() + loss).backward()


class GlobalNorm(nn.Module):
    """Batch norm over the rows of all processes. torch's own does not run on a CPU."""

    def forward(self, x):
        sums = torch.stack([torch.ones_like(x), x, x * x]).sum(1)
        if dist.is_initialized():
            sums = all_reduce(sums)
        number, total, squares = sums
        mean = total / number
        return (x - mean) / (squares / number - mean**2 + 1e-5).sqrt()


def normalized():
    return nn.Sequential(*network()[:1], GlobalNorm(), *network()[1:])


CASES = {name: lambda name=name: [VAT(1.0, direction=name)] for name in DIRECTIONS}
CASES |= {"with entropy": lambda: [VAT(1.0, direction="margin"), Entropy()]}
CASES |= {"best sign": lambda: [VAT(1.0, direction="exact", choose_sign=True, gradient_through_target=True)]}
NOT_SHARDED = ("exact", "best sign")


def work(rank, world, folder):
    """All cases under both strategies. The complete gradients go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for case, make in CASES.items():
        distributed = DistributedDataParallel(network())
        backward(distributed, make(), rank, world)
        found["DDP", case] = [p.grad for p in distributed.parameters()]
        distributed = DistributedDataParallel(network())
        backward(distributed, make(), rank, world, apart=True)
        found["DDP, two backward passes", case] = [p.grad for p in distributed.parameters()]
        distributed = DistributedDataParallel(normalized())
        backward(distributed, make(), rank, world)
        found["DDP, global batch norm", case] = [p.grad for p in distributed.parameters()]
        for name in ("FSDP2", "FSDP2, layers alone"):
            sharded = network()
            for layer in (sharded[0], sharded[2], *((sharded,) if name == "FSDP2" else ())):
                fully_shard(layer, mesh=mesh)
            if case in NOT_SHARDED:
                with pytest.raises(ValueError, match=r"direction='exact' .* FSDP2.* use 'margin'"):
                    backward(sharded, make(), rank, world)
                continue
            backward(sharded, make(), rank, world)
            found[name, case] = [p.grad.full_tensor() for p in sharded.parameters()]
    torch.save(found, folder / f"{rank}.pt")  # the process ends with its group: see `process_group` in regularizers/test_mean_teacher.py


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    two_ranks(lambda rank: work(rank, 2, folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    ("strategy", "case"),
    [("DDP", case) for case in CASES]
    + [("DDP, two backward passes", case) for case in CASES]
    + [("DDP, global batch norm", case) for case in CASES]
    + [(name, case) for name in ("FSDP2", "FSDP2, layers alone") for case in CASES if case not in NOT_SHARDED],
)
def test_gradients_of_two_processes_are_those_of_one(gradients, strategy, case):
    one = normalized() if "norm" in strategy else network()
    backward(one, CASES[case](), 0, 1)
    # float64. The step of finite differences is a share of the mean length of a rank's own rows, which changes d by as much.
    tolerance = {"rtol": 1e-2, "atol": 1e-4} if case == "finite_difference" else {"rtol": 1e-9, "atol": 1e-12}
    for first, second, p in zip(*(found[strategy, case] for found in gradients), one.parameters(), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, p.grad, **tolerance)


# ------------------------------------------------------------------------------------------------- through the trainer

TRAINED = ["model=mlp", "model.hidden=[16]", "model.batch_norm=false", "vat.direction=margin", "trainer.log_every_n_steps=1"]
TRAINED += ["data.batch_size_labeled=7", "data.batch_size_unlabeled=11", "trainer.max_steps=4", "data.steps_per_epoch=2"]
TRAINED += ["scheduler.T_max=4"]  # for any number of steps in a part of the run


@pytest.fixture
def settings(compose):
    def composed(*overrides):
        quiet = ["logger=csv", "figures=null", "trainer.enable_progress_bar=false"]
        return compose(*quiet, *TRAINED, *overrides)

    return composed


def in_two_processes(folder, jobs):
    """Train each job, given by a configuration, its folder and a checkpoint to resume from. Return their metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank):
        rank_zero_only.rank = rank
        found = []
        for job in jobs:
            os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            found.append(training.train(*job))
        (folder / f"metrics-{rank}.json").write_text(json.dumps(found))

    two_ranks(run)
    ranks = [json.loads((folder / f"metrics-{rank}.json").read_text()) for rank in range(2)]
    for one, other in zip(*ranks, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    return ranks[0]


def assert_same_run(found, expected):
    (metrics, folder), (expected_metrics, expected_folder) = found, expected
    # float32, and another order of sums. LDS is quadratic in the terms of these sums.
    for name in set(expected_metrics) - {"seconds"}:
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-3 if name == "test/lds" else 1e-4), name
    logged, known_rows = (list(csv.DictReader((f / "metrics.csv").open())) for f in (folder, expected_folder))
    steps = {row["step"]: row for row in known_rows if row["train/loss"]}
    rows = [row for row in logged if row["train/loss"]]
    assert rows
    for row in rows:  # of the complete batch, not of one rank's share; noise keeps KL ascents of 1e-6 apart
        known = {name: pytest.approx(float(value), rel=1e-3, abs=1e-5) for name, value in steps[row["step"]].items() if value}
        assert {name: float(value) for name, value in row.items() if value and name in known} == known
    saved, known = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (folder, expected_folder))
    states = [(saved["state_dict"][name], value) for name, value in known["state_dict"].items() if isinstance(value, torch.Tensor)]
    for number, state in known["optimizer_states"][0]["state"].items():
        states += [(saved["optimizer_states"][0]["state"][number][name], value) for name, value in state.items()]
    assert len(states) > 8
    for value, expected_value in states:
        torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-5)


def test_a_run_of_two_processes_equals_that_of_one_and_resumes_it(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(report.console, "quiet", True)
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"]
    whole = training.train(settings(), tmp_path / "whole"), tmp_path / "whole"
    training.train(settings("trainer.max_steps=2"), tmp_path / "half")
    half = tmp_path / "half" / "checkpoints" / "last.ckpt"
    first, second, _ = in_two_processes(
        tmp_path,
        [
            (settings(*two), tmp_path / "two"),
            (settings(*two), tmp_path / "one, then two", half),
            (settings(*two, "trainer.max_steps=2", "test=none"), tmp_path / "two, then one"),
        ],
    )
    assert_same_run((first, tmp_path / "two"), whole)
    assert_same_run((second, tmp_path / "one, then two"), whole)
    third = training.train(settings(), tmp_path / "last", tmp_path / "two, then one" / "checkpoints" / "last.ckpt")
    assert_same_run((third, tmp_path / "last"), whole)


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp", "deepspeed_stage_2"])
def test_a_strategy_that_divides_the_weights_is_refused(settings, tmp_path, strategy):
    with pytest.raises(ValueError, match=r"trainer\.strategy=.*: weights cannot be divided among processes\. Use trainer\.strategy=ddp"):
        training.train(settings(f"trainer.strategy={strategy}"), tmp_path / "job")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (4, 2)])
def test_a_restart_with_other_processes_keeps_the_global_order(before, after):
    x, y = torch.randn(30, 1, 6, 5), torch.arange(30) % 3

    def loaders(world):
        sizes = {"batch_size_labeled": 5, "batch_size_unlabeled": 9, "steps_per_epoch": 4, "seed": 0}
        augment = lambda x, generator: x + torch.randn(x.shape, generator=generator)  # noqa: E731
        options = sizes | {"augment": augment, "world_size": world}
        return [ResidentLoader(x, y, torch.arange(10), torch.arange(30), rank=rank, **options) for rank in range(world)]

    def joined(world, state, steps):
        ranks = loaders(world)
        for rank in ranks:
            rank.load_state_dict(state)
        batches = [zip(*(iter(rank) for rank in ranks), strict=True) for _ in range(2)]
        found = []
        for epoch in batches:
            for parts in epoch:
                found.append([torch.cat([getattr(part, name).x for part in parts]) for name in ("labeled", "unlabeled")])
                if len(found) == steps:
                    return found, ranks[0].state_dict()

    whole, _ = joined(1, {"micro_step": 0}, 7)
    start, state = joined(before, {"micro_step": 0}, 3)
    rest, _ = joined(after, copy.deepcopy(state), 4)
    for found, expected in zip(start + rest, whole, strict=True):
        assert all(map(torch.equal, found, expected))


DYING = """
import os, signal, sys
import train
from vat.lightning.classifier import Classifier

whole = Classifier.training_step

def training_step(self, batch, batch_idx):
    if batch.micro_step == 7 and self.global_rank == int(os.environ["DIES"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, batch, batch_idx)

Classifier.training_step = training_step
train.main()
"""


@pytest.mark.long  # new processes, by the command line
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_ends_the_run_and_another_number_of_processes_resumes(shell, tmp_path, dies):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    conf = Path(__file__).parents[2] / "conf"
    quick = ["trainer.max_steps=10", "data.steps_per_epoch=5", "trainer.enable_progress_bar=false", "model=mlp", "model.hidden=[16]"]
    quick += ["model.batch_norm=false", "vat.direction=exact", "logger=none", "figures=null", "test=none"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=outputs/today/job"]
    done = shell(script, "--config-path", str(conf), *quick, *two, DIES=str(dies))  # it gives up after 600 seconds
    assert done.returncode != 0
    checkpoint = tmp_path / "outputs" / "today" / "job" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 5
    gone_on = shell(script, "--config-path", str(conf), *quick, f"ckpt_path={checkpoint}", "hydra.run.dir=one", DIES="9")
    assert gone_on.returncode == 0, gone_on.stderr
    alone = shell(script, "--config-path", str(conf), *quick, "hydra.run.dir=alone", DIES="9")
    assert alone.returncode == 0, alone.stderr
    found, expected = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in ("one", "alone")
    )
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)  # float32, ten updates of Adam


def test_a_port_that_is_taken_is_refused_before_another_process_waits_for_it(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ValueError, match=r"MASTER_PORT=\d+ cannot be used .*in use.*set a free port"):
            training.train(settings("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"), tmp_path / "run")
        assert not (tmp_path / "run").exists()
