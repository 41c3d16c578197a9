import copy
import gc

import pytest
import torch
import torch.distributed as dist
from networks import network, rows
from torch import nn

from vat import MeanTeacher, Step
from vat.step import Key

KEY = Key(seed=5)


class Run:
    """A training loop that can be stopped and resumed."""

    def __init__(self, decay=0.8):
        self.model = network(norm=True, dropout=0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.5)
        self.regularizer = MeanTeacher(decay=decay, weight=3.0, ramp_up=4)
        self.regularizer.on_fit_start(self.model)
        self.steps = 0

    def step(self):
        step = Step(self.model, rows(seed=self.steps), key=Key(5, self.steps), live=True)
        loss = self.regularizer.term(step) + self.model(rows(seed=self.steps)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.regularizer.on_optimizer_step_end(self.model)
        self.steps += 1
        return loss.item()


def test_the_teacher_is_the_moving_average_of_the_weights():
    torch.manual_seed(0)
    run = Run(decay=0.7)
    teacher = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    for t in range(5):
        run.step()
        decay = min(1 - 1 / (t + 1), 0.7)
        for name, p in run.model.named_parameters():
            teacher[name] = decay * teacher[name] + (1 - decay) * p.detach()
            torch.testing.assert_close(run.regularizer.teacher[name], teacher[name])
    weight = run.model[0].weight
    assert (weight - teacher["0.weight"]).abs().max() > 1e-3  # the teacher is behind the weights


def test_penalty_is_the_squared_difference_from_the_teacher_under_other_noise_and_the_other_view():
    module, view = network(norm=True, dropout=0.5), rows(seed=2)
    regularizer = MeanTeacher()
    regularizer.on_fit_start(module)
    with torch.no_grad():
        for name, p in regularizer.teacher.items():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)), dtype=p.dtype))
    teacher = copy.deepcopy(module)
    teacher.load_state_dict(regularizer.teacher, strict=False)
    p = []
    for stream, network_, x in (("network", module, rows()), ("teacher", teacher, view)):
        with torch.random.fork_rng():
            torch.manual_seed(KEY.own(stream))
            p.append(copy.deepcopy(network_)(x).softmax(1))
    penalty = regularizer.penalty(Step(module, rows(), key=KEY, live=True, view=view))
    torch.testing.assert_close(penalty, (p[0] - p[1]).square().mean())


def test_no_gradient_reaches_the_teacher_and_no_optimizer_finds_it():
    module, regularizer = network(norm=True, dropout=0.5), MeanTeacher()
    regularizer.on_fit_start(module)
    with torch.no_grad():
        for p in regularizer.teacher.values():
            p.mul_(1.1)
    before = {name: p.clone() for name, p in regularizer.teacher.items()}
    regularizer.penalty(Step(module, rows(), key=KEY, live=True)).backward()
    assert list(regularizer.parameters()) == []
    assert all(p.grad is None and not p.requires_grad for p in regularizer.teacher.values())
    assert all(torch.equal(p, before[name]) for name, p in regularizer.teacher.items())
    assert all(p.grad is not None for p in module.parameters())


def test_without_noise_the_teacher_of_the_first_step_agrees():
    module, regularizer = network(norm=True, dropout=0.0), MeanTeacher()
    regularizer.on_fit_start(module)
    assert regularizer.penalty(Step(module, rows(), key=KEY, live=True)).item() == 0


def test_a_run_resumes_identically_from_its_saved_state(tmp_path):
    torch.manual_seed(0)
    run = Run()
    for _ in range(3):
        run.step()
    saved = {"model": run.model.state_dict(), "regularizer": run.regularizer.state_dict(), "rng": torch.get_rng_state()}
    torch.save(saved, tmp_path / "state.pt")
    wanted = [run.step() for _ in range(3)]

    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again = Run()
    again.model.load_state_dict(loaded["model"])
    again.regularizer.load_state_dict(loaded["regularizer"])
    again.regularizer.on_fit_start(again.model)
    again.steps = 3
    torch.set_rng_state(loaded["rng"])
    assert [again.step() for _ in range(3)] == wanted
    assert all(torch.equal(again.regularizer.teacher[name], p) for name, p in run.regularizer.teacher.items())


def test_two_teachers_of_one_state_go_separate_ways():
    module = network(norm=True, dropout=0.5)
    one, two = MeanTeacher(), MeanTeacher()
    one.on_fit_start(module)
    two.load_state_dict(one.state_dict())
    two.on_fit_start(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    before = two.teacher["0.weight"].clone()
    one.on_optimizer_step_end(module)
    assert not torch.equal(one.teacher["0.weight"], before)
    assert torch.equal(two.teacher["0.weight"], before)


def test_a_teacher_without_weights_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match="on_fit_start"):
        MeanTeacher()(network(norm=True, dropout=0.5), rows())


@pytest.fixture
def process_group(tmp_path):
    """A process group of one process that outlives its users: freed by the last user, it would wait for threads that need the GIL."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("first", ["model", "ddp", "compiled"])
@pytest.mark.parametrize("then", ["model", "ddp", "compiled"])
def test_the_teacher_is_the_same_with_any_wrapper_of_the_model(first, then):
    model = network(norm=True, dropout=0.0)
    around = {
        "model": model,
        "ddp": nn.parallel.DistributedDataParallel(model),
        "compiled": torch.compile(model, backend="eager"),
    }
    regularizer, usual = MeanTeacher(decay=0.5), MeanTeacher(decay=0.5)
    regularizer.on_fit_start(around[first])
    usual.on_fit_start(model)
    for _ in range(2):  # the first step copies the weights
        regularizer.on_optimizer_step_end(around[then])
        usual.on_optimizer_step_end(model)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
    value = regularizer.term(Step(around[then], rows(), key=KEY, live=True))
    assert value == usual.term(Step(model, rows(), key=KEY, live=True)) != 0
