"""The state of an optimizer, a schedule and a loop that a checkpoint brings is compared before it is restored."""

import copy
from pathlib import Path

import pytest
import torch

from vat.runs import training
from vat.runs.training_state import refuse_foreign_state

FOREIGN = {  # where, what stands there, and what is said of it; the last key may be new
    "shorter": (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(1, 1), r"state of parameter 0\.exp_avg is \(1, 1\)"),
    "longer": (("optimizer_states", 0, "state", 0, "exp_avg_sq"), torch.zeros(99, 99), r"exp_avg_sq is \(99, 99\)"),
    "integers": (("optimizer_states", 0, "state", 1, "exp_avg"), torch.zeros(8, dtype=torch.int64), "exp_avg is"),
    "no tensor": (("optimizer_states", 0, "state", 0, "exp_avg"), "x", "exp_avg is x"),
    "no step": (("optimizer_states", 0, "state", 0, "step"), None, "step is None"),
    "a parameter": (("optimizer_states", 0, "state", 99), {}, "the optimizer has no parameter 99"),
    "no optimizer": (("optimizer_states",), [], "optimizer_states is"),
    "rate": (("optimizer_states", 0, "param_groups", 0, "lr"), float("nan"), r"param_groups\[0\]\.lr is nan"),
    "text": (("optimizer_states", 0, "param_groups", 0, "lr"), "\x1b[2J", r"lr is \\x1b\[2J"),
    "flag": (("optimizer_states", 0, "param_groups", 0, "differentiable"), True, "differentiable is True"),
    "betas": (("optimizer_states", 0, "param_groups", 0, "betas"), [0.9], r"betas is \[0\.9\]"),
    "method": (("lr_schedulers", 0, "step"), None, r"lr_schedulers\[0\] is"),
    "division by 0": (("lr_schedulers", 0, "T_max"), 0, "T_max of its schedule is 0"),
    "counter": (("lr_schedulers", 0, "last_epoch"), "x", "last_epoch is x"),
    "no schedule": (("lr_schedulers",), [], "lr_schedulers is"),
    "no loop": (("loops",), None, "fit_loop is None"),
    "negative": (("loops", "fit_loop", "epoch_progress", "total", "ready"), -1, r"epoch_progress\.total\.ready is -1"),
    "batches": (("loops", "fit_loop", "state_dict", "combined_loader"), [{"micro_step": -5}], "micro_step is -5"),
    "another step": (("global_step",), 4, "of step 4 and of step 10"),
    "records": (("logged", "history.jsonl"), -1, r"logged\.history\.jsonl is -1"),
}


def test_a_state_of_another_run_is_refused_before_it_is_restored(job, tmp_path, monkeypatch):
    settings = ("data=moons", "model=mlp", "model.hidden=[8]", "vat.direction=finite_difference", "trainer.max_steps=15")
    first = job(*settings)
    given = []

    def compared(*arguments):
        given.extend(arguments)
        refuse_foreign_state(*arguments)  # one's own passes

    monkeypatch.setattr(training.training_state, "refuse_foreign_state", compared)
    start = first.folder / "checkpoints" / "previous.ckpt"
    second = job(*settings, f"ckpt_path={start}", name="second")
    one, other = (torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (first, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor))

    saved, _, classifier, trainer = given
    for keys, value, said in FOREIGN.values():
        spoilt = copy.deepcopy(saved)
        node = spoilt
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        with pytest.raises(ValueError, match=f"^a.ckpt does not hold the state of such a run .*{said}"):
            refuse_foreign_state(spoilt, Path("a.ckpt"), classifier, trainer)


@pytest.mark.parametrize("optimizer", ["optimizer=sgd", "optimizer=adam_linear", "optimizer=adamw_linear"])
def test_the_state_of_every_optimizer_passes(job, optimizer):
    settings = ("data=moons", "model=mlp", "model.hidden=[8]", optimizer, "trainer.max_steps=10", "ema=0.9")
    first = job(*settings, "regularizer=mean_teacher")
    again = job(*settings, "regularizer=mean_teacher", f"ckpt_path={first.folder / 'checkpoints' / 'previous.ckpt'}", name="again")
    assert again.metrics["test/accuracy"] == first.metrics["test/accuracy"]
