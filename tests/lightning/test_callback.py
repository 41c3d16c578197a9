"""Any regularizer on any LightningModule, whose code does not mention it."""

import copy
import json
from collections import UserDict
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vat import VAT, Adversarial, Entropy, MeanTeacher
from vat.lightning.callback import RegularizerCallback, first_tensors
from vat.regularizers import Regularizer
from vat.step import Key, Step


class Plain(pl.LightningModule):
    """Batch norm, dropout, a batch of (x, y), and no code for VAT."""

    def __init__(self, rate=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)).double()
        self.rate = rate
        self.gradients = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append([p.grad.clone() for p in self.parameters()])


REPORTED = ("lds", "kl_random", "kl_at_zero", "kl_ascent", "curvature", "cosine", "flip_rate", "margin")


def batches(n=24, batch_size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype)
    return DataLoader(TensorDataset(x, torch.randint(3, (n,), generator=generator)), batch_size=batch_size)


def fit(module, *callbacks, folder=".", loader=None, ckpt_path=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {"max_steps": 1, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    trainer = pl.Trainer(callbacks=list(callbacks), default_root_dir=folder, **(quiet | settings | options))
    pl.seed_everything(5, verbose=False)
    trainer.fit(module, batches() if loader is None else loader, ckpt_path=ckpt_path)
    return trainer


def first_batch():
    return next(iter(batches()))


def gradient_by_hand(*regularizers, x=None, dtype=torch.float64):
    """Gradient of only the terms, in a bare loop with the key of the first step."""
    module, (inputs, y) = Plain().to(dtype), first_batch()
    step = Step(module, (inputs if x is None else x).to(dtype), y, key=Key(5, 0, 0), live=True)
    return torch.autograd.grad(sum(r.term(step) for r in regularizers), list(module.parameters()))


CHOICES = {
    "vat": [VAT(eps=1.5)],
    "exact": [VAT(eps=1.5, direction="exact")],
    "entropy": [Entropy(weight=0.3)],
    "adversarial": [Adversarial(eps=0.5)],
    "two": [VAT(eps=1.5), Entropy(weight=0.3)],
    "two of a kind": [VAT(eps=1.5), VAT(eps=0.5)],
}


@pytest.mark.parametrize("regularizers", CHOICES.values(), ids=CHOICES)
def test_the_loss_gets_exactly_the_terms(regularizers):
    plain, regularized = Plain(), Plain()
    fit(plain)
    fit(regularized, RegularizerCallback(*copy.deepcopy(regularizers)))
    added = [b - a for a, b in zip(plain.gradients[0], regularized.gradients[0], strict=True)]
    for found, expected in zip(added, gradient_by_hand(*regularizers), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert max(g.abs().max() for g in added) > 1e-4


def test_running_statistics_and_random_numbers_are_those_without_it():
    plain, regularized = Plain(rate=0.0), Plain(rate=0.0)
    fit(plain, max_steps=3)
    after = torch.get_rng_state()
    fit(regularized, RegularizerCallback(VAT(eps=1.0)), max_steps=3)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), regularized.buffers(), strict=True))
    assert plain.net[1].num_batches_tracked == 3


def test_each_step_has_its_own_direction():
    module = Plain(rate=0.0)
    keys = []

    class Watching(Regularizer):
        def penalty(self, step):
            keys.append(step.key)
            return 0.0 * next(step.module.parameters()).sum()

    fit(module, RegularizerCallback(Watching()), max_steps=5)  # beyond the end of an epoch of three
    assert keys == [Key(5, i, 0) for i in range(5)]


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_terms_and_diagnostics_are_logged_and_a_dict_keeps_its_entries(tmp_path, output):
    class Dict(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss, "mine": torch.tensor(7.0)}

    seen = []

    class Seeing(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs)

    module = Dict() if output == "dict" else Plain()
    callback = RegularizerCallback(VAT(eps=1.5), Entropy())
    trainer = fit(module, callback, Seeing(), logger=CSVLogger(tmp_path), log_every_n_steps=1, folder=tmp_path)
    names = {"train/vat", "train/entropy", *(f"train/vat/{n}" for n in REPORTED)}
    assert names <= set(trainer.logged_metrics)
    assert trainer.logged_metrics["train/vat/kl_at_zero"] == pytest.approx(0, abs=1e-15)
    module_by_hand, (x, y) = Plain(), first_batch()
    by_hand = VAT(eps=1.5).term(Step(module_by_hand, x, y, key=Key(5, 0, 0)))
    assert trainer.logged_metrics["train/vat"] == pytest.approx(by_hand.item(), rel=1e-6)
    assert ("mine" in seen[0]) == (output == "dict")
    assert seen[0]["loss"] > by_hand


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*")
def test_a_batch_that_the_module_skips_is_skipped():
    class Skipping(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx else None

        def on_before_optimizer_step(self, optimizer):
            self.gradients.append([p.grad is not None for p in self.parameters()])

    plain, regularized = Skipping(), Skipping()
    fit(plain, max_steps=2)
    fit(regularized, RegularizerCallback(VAT(eps=1.0)), max_steps=2)
    assert regularized.gradients == plain.gradients
    assert [any(found) for found in plain.gradients] == [False, True]


# ------------------------------------------------------------------------------------------- the module is left as it was


def test_the_module_has_its_own_training_step_again_after_fit():
    module = Plain()
    fit(module, RegularizerCallback(VAT(eps=1.0)))
    assert "training_step" not in vars(module)
    assert module.training_step.__func__ is Plain.training_step


def test_the_module_has_its_own_training_step_again_after_an_exception():
    class Failing(Plain):
        def training_step(self, batch, batch_idx):
            raise OSError("the disk is gone")

    module = Failing()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, RegularizerCallback(VAT(eps=1.0)))
    assert "training_step" not in vars(module)


def test_a_training_step_that_was_set_on_the_instance_is_there_again_after_fit():
    module = Plain()
    own = lambda batch, batch_idx: F.cross_entropy(module(batch[0]), batch[1])  # noqa: E731
    module.training_step = own
    fit(module, RegularizerCallback(VAT(eps=1.0)))
    assert module.training_step is own


def test_a_second_fit_adds_the_terms_once():
    module, callback = Plain(rate=0.0), RegularizerCallback(VAT(eps=1.5))
    fit(module, callback)
    fit(module, callback)
    first, second = module.gradients
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_two_callbacks_add_their_terms():
    plain, regularized = Plain(), Plain()
    fit(plain)
    fit(regularized, RegularizerCallback(VAT(eps=1.5)), RegularizerCallback(Entropy(weight=0.3)))
    for a, b, g in zip(plain.gradients[0], regularized.gradients[0], gradient_by_hand(VAT(eps=1.5), Entropy(weight=0.3)), strict=True):
        torch.testing.assert_close(b - a, g, rtol=1e-8, atol=1e-12)
    assert "training_step" not in vars(regularized)


class WithoutIndex(Plain):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class OfOneElement(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).reshape(1)


@pytest.mark.parametrize("kind", [WithoutIndex, OfOneElement])
def test_what_lightning_takes_for_a_training_step_is_taken(kind):
    usual, other = Plain(), kind()
    for module in (usual, other):
        fit(module, RegularizerCallback(VAT(1.0)))
    assert all(torch.equal(a, b) for a, b in zip(usual.gradients[0], other.gradients[0], strict=True))


class Draws(Plain):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
def test_a_training_step_that_draws_its_batches_is_refused():
    with pytest.raises(ValueError, match=r"Draws\.training_step takes dataloader_iter"):
        fit(Draws(), RegularizerCallback(VAT(1.0)))


class WithoutLoss(Plain):
    def training_step(self, batch, batch_idx):
        return {"x": 1}


def test_lightning_says_that_the_loss_is_missing():
    with pytest.raises(MisconfigurationException, match="the 'loss' key needs to be present"):
        fit(WithoutLoss(), RegularizerCallback(VAT(1.0)))


class Aliased(Plain):
    """A module whose first layer has two names."""

    def __init__(self):
        super().__init__()
        self.stem = self.net[0]


def test_a_layer_with_two_names_keeps_learning():
    module = Aliased()
    weight, start = module.stem.weight, module.stem.weight.detach().clone()
    fit(module, RegularizerCallback(VAT(1.0)), max_steps=3)
    assert module.stem.weight is weight
    after_one = Aliased()
    fit(after_one, RegularizerCallback(VAT(1.0)), max_steps=1)
    assert (weight - start).norm() > 1.5 * (after_one.stem.weight - start).norm()


def test_manual_optimization_is_refused():
    class Manual(Plain):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    module = Manual()
    with pytest.raises(ValueError, match=r"Manual has automatic_optimization=False.*call the regularizer in training_step"):
        fit(module, RegularizerCallback(VAT(eps=1.0)))
    assert "training_step" not in vars(module)


# ---------------------------------------------------------------------------------------------------- inputs and forward


def test_a_function_names_the_inputs():
    plain, regularized = Plain(), Plain()
    fit(plain)
    fit(regularized, RegularizerCallback(VAT(eps=1.5), inputs=lambda batch: 2 * batch[0][:6]))
    expected = gradient_by_hand(VAT(eps=1.5), x=2 * first_batch()[0][:6])
    for a, b, g in zip(plain.gradients[0], regularized.gradients[0], expected, strict=True):
        torch.testing.assert_close(b - a, g, rtol=1e-8, atol=1e-12)


def test_a_function_names_the_forward_pass():
    class Elsewhere(Plain):
        def forward(self, x):
            raise AssertionError("this is not the way to the logits")

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    plain, regularized = Plain(), Elsewhere()
    fit(plain)
    fit(regularized, RegularizerCallback(VAT(eps=1.5), forward=lambda module, x: module.net(x)))
    for a, b, g in zip(plain.gradients[0], regularized.gradients[0], gradient_by_hand(VAT(eps=1.5)), strict=True):
        torch.testing.assert_close(b - a, g, rtol=1e-8, atol=1e-12)
    assert torch.equal(plain.net[1].running_mean, regularized.net[1].running_mean)


def test_the_first_floating_tensor_is_the_input_and_the_first_of_integers_of_its_length_the_labels():
    x, y, other = torch.zeros(4, 2), torch.arange(4), torch.arange(3)
    found = first_tensors({"n": torch.tensor(3), "id": other, "data": [y, {"x": x, "w": torch.ones(4)}]})
    assert found[0] is x
    assert found[1] is y
    assert first_tensors(x) == (x, None)
    assert first_tensors(UserDict(x=x, y=y)) == (x, y)  # like a tokeniser's batch
    with pytest.raises(ValueError, match=r"no tensor of a floating dtype.*inputs="):
        first_tensors((y, other))


def test_a_mask_is_not_taken_for_the_labels():
    x, y = torch.zeros(4, 2), torch.arange(4)
    assert first_tensors({"x": x, "mask": torch.ones(4, 2, dtype=torch.bool), "y": y}) == (x, y)


def test_a_callback_without_a_regularizer_is_refused():
    with pytest.raises(ValueError, match=r"RegularizerCallback\(\) has no regularizer: give one"):
        RegularizerCallback()


# ----------------------------------------------------------------------------------- accumulation, precision, restarts


def test_with_accumulation_the_teacher_moves_once_an_optimizer_step():
    teacher = MeanTeacher(decay=0.5)
    trainer = fit(Plain(), RegularizerCallback(teacher), accumulate_grad_batches=2, max_steps=4)
    assert trainer.global_step == teacher.num_updates == 4


def test_with_accumulation_the_gradient_is_the_mean_over_the_micro_batches():
    class Constant(Regularizer):
        def penalty(self, step):
            return step.module.net[4].bias.sum()

    plain, regularized = Plain(), Plain()
    fit(plain, accumulate_grad_batches=2)
    fit(regularized, RegularizerCallback(Constant(weight=0.5)), accumulate_grad_batches=2)
    added = regularized.gradients[0][-1] - plain.gradients[0][-1]
    torch.testing.assert_close(added, torch.full_like(added, 0.5))


BFLOAT16 = "at ξ = 1e-3 of the inputs' length a difference is below bfloat16's resolution, so d is close to random"


@pytest.mark.parametrize(
    "direction",
    [
        "exact",
        "margin",
        "ascent",
        pytest.param("finite_difference", marks=pytest.mark.xfail(strict=True, reason=BFLOAT16)),
    ],
)
@pytest.mark.filterwarnings("ignore:finite differences are noise")
def test_it_works_under_bfloat16_autocast(direction):
    plain, regularized = Plain().float(), Plain().float()
    options = {"loader": batches(dtype=torch.float32), "precision": "bf16-mixed"}
    fit(plain, **options)
    fit(regularized, RegularizerCallback(VAT(eps=2.0, direction=direction)), **options)
    added = torch.cat([(b - a).flatten() for a, b in zip(plain.gradients[0], regularized.gradients[0], strict=True)])
    by_hand = gradient_by_hand(VAT(eps=2.0, direction=direction), dtype=torch.float32)
    expected = torch.cat([g.flatten() for g in by_hand])
    assert added.isfinite().all()
    # bfloat16 keeps 8 bits. The test is that no part of the gradient is lost.
    assert F.cosine_similarity(added, expected, dim=0) > 0.95
    assert 0.8 < added.norm() / expected.norm() < 1.25


class KilledError(Exception):
    pass


class Killing(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            raise KilledError


@pytest.mark.filterwarnings("ignore:.*need to be provided during `Trainer` instantiation.*")
@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_restored_run_resumes_with_its_teacher(tmp_path, accumulate):
    class Still(Plain):  # no dropout: Lightning does not restore its random numbers
        def __init__(self):
            super().__init__()
            self.net[3] = nn.Identity()

    x, y = first_batch()
    alike = DataLoader(TensorDataset(x.repeat(32, 1), y.repeat(32)), batch_size=8)  # Lightning does not restore the order either
    options = {"max_steps": 8, "accumulate_grad_batches": accumulate, "loader": alike, "folder": tmp_path}
    whole, teacher = Still(), MeanTeacher(decay=0.9, weight=5.0)
    fit(whole, RegularizerCallback(teacher), **options)

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    killed = RegularizerCallback(MeanTeacher(decay=0.9, weight=5.0))
    with pytest.raises(KilledError):
        fit(Still(), killed, every, Killing(), **options, enable_checkpointing=True)
    restored, other = Still(), MeanTeacher(decay=0.9, weight=5.0)
    fit(restored, RegularizerCallback(other), ckpt_path=tmp_path / "step=4.ckpt", **options)
    assert other.num_updates == teacher.num_updates == 8
    for a, b in zip(whole.parameters(), restored.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    for name, t in other.teacher.items():
        torch.testing.assert_close(teacher.teacher[name], t, rtol=1e-12, atol=1e-14)


def test_its_state_is_that_of_its_regularizers():
    callback = RegularizerCallback(VAT(eps=1.0, ramp_up=10), MeanTeacher())
    callback.on_fit_start(SimpleNamespace(global_step=0), module := Plain())
    for regularizer in callback.regularizers.values():
        regularizer.on_optimizer_step_end(module)
    other = RegularizerCallback(VAT(eps=1.0, ramp_up=10), MeanTeacher())
    other.load_state_dict(callback.state_dict())
    assert [r.num_updates for r in other.regularizers.values()] == [1, 1]
    assert other.regularizers["mean_teacher"].teacher.keys() == dict(module.named_parameters()).keys()


# -------------------------------------------------------------------------------------------------------- two processes

TWO = """
import json, os, sys, warnings
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
warnings.filterwarnings("ignore")
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vat import VAT, MeanTeacher
from vat.lightning.callback import RegularizerCallback

class Plain(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

pl.seed_everything(1, verbose=False)
data = TensorDataset(torch.randn(32, 5), torch.randint(3, (32,)))
module = Plain()
trainer = pl.Trainer(
    strategy="ddp", accelerator="cpu", devices=2, max_steps=4, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[RegularizerCallback(VAT(eps=1.0), MeanTeacher())],
)
trainer.fit(module, DataLoader(data, batch_size=8))
weights = torch.cat([p.detach().flatten() for p in module.parameters()])
with open(os.path.join(sys.argv[1], f"rank{trainer.global_rank}.json"), "w") as file:
    json.dump([trainer.world_size, trainer.global_step, weights.tolist()], file)
"""


def test_two_processes_end_with_the_same_weights(shell, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    done = shell(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert one[:2] == other[:2] == [2, 4]
    assert one[2] == other[2]
    assert torch.tensor(one[2]).isfinite().all()
    assert one[2] != torch.cat([p.detach().flatten() for p in Plain().float().parameters()]).tolist()


class Shared(Plain):
    """A module whose validation calls its training step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def validation_step(self, batch, batch_idx):
        self.seen.append((self.training_step(batch, batch_idx) - F.cross_entropy(self(batch[0]), batch[1])).item())


def test_a_validation_that_calls_the_training_step_is_without_terms(tmp_path):
    module = Shared()
    trainer = pl.Trainer(
        callbacks=[RegularizerCallback(VAT(eps=2.0))], max_steps=3, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, batches(), batches())
    assert len(module.seen) >= 3
    assert set(module.seen) == {0.0}


def test_a_second_run_starts_again_and_a_resumed_one_does_not(tmp_path):
    callback, seen = RegularizerCallback(VAT(eps=1.0, eps_start=0.25, eps_steps=3), MeanTeacher()), []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, module):
            vat, teacher = callback.regularizers["vat"], callback.regularizers["mean_teacher"]
            apart = max((p - teacher.teacher[name]).abs().max().item() for name, p in module.named_parameters())
            seen.append((vat.current_eps, apart))

    for _ in range(2):  # as in a loop over folds or seeds
        trainer = fit(Plain(), callback, Watch(), max_steps=3)
    assert seen == [(0.25, 0.0), (0.25, 0.0)]
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    fit(Plain(), callback, Watch(), max_steps=4, ckpt_path=tmp_path / "three.ckpt")
    assert seen[2][0] == 1.0
    assert seen[2][1] > 0.0


def test_a_copy_made_during_the_run_trains_itself():
    copies = []

    class Copy(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            copies.append(copy.deepcopy(module))

    original = Plain()
    fit(original, RegularizerCallback(VAT(eps=1.0)), RegularizerCallback(Entropy()), Copy())
    (twin,) = copies
    before = twin.net[-1].weight.clone()
    kept = [p.clone() for p in original.parameters()]
    fit(twin)
    assert not torch.equal(twin.net[-1].weight, before)
    assert all(torch.equal(a, b) for a, b in zip(kept, original.parameters(), strict=True))


def test_a_module_can_be_saved_during_the_run(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            torch.save(module.training_step, tmp_path / "step.pt")

    fit(Plain(), RegularizerCallback(VAT(eps=1.0)), Save())
    assert (tmp_path / "step.pt").is_file()


def test_a_loss_for_each_row_is_refused():
    class PerRow(Plain):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1], reduction="none")

    with pytest.raises(ValueError, match=r"must return a scalar loss, got shape \(8,\): return its mean"):
        fit(PerRow(), RegularizerCallback(VAT(eps=1.0)))


def test_a_batch_with_several_inputs_gives_a_warning():
    x, y, unlabeled = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long), torch.zeros(8, 5)
    with pytest.warns(UserWarning, match=r"several tensors that may be inputs, and the first is used\. .*inputs=lambda"):
        found, _ = first_tensors({"labeled": (x, y), "unlabeled": unlabeled})
    assert found is x


def test_targets_of_another_shape_are_not_inputs(recwarn):
    first_tensors((torch.zeros(4, 5), torch.zeros(4), torch.zeros(4, 1)))
    assert not recwarn.list


def test_each_micro_step_and_rank_has_its_own_draws_and_rows(monkeypatch):
    seen = []
    monkeypatch.setattr("vat.lightning.callback.Step", lambda *given, **options: seen.append(options) or Step(*given, **options))
    position = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=7))
    trainer = SimpleNamespace(global_rank=1, world_size=2, global_step=2, fit_loop=position)
    RegularizerCallback(VAT(1.0))._terms(trainer, Plain(), next(iter(batches())), None)
    (step,) = seen
    assert (step["start"], step["total"], step["key"].micro_step, step["key"].rank) == (8, 16, 7, 1)


def test_a_term_that_is_not_finite_stops_the_run_by_its_name():
    class Broken(Regularizer):
        def penalty(self, step):
            return step.clean.logits.sum() * float("nan")

    with pytest.raises(FloatingPointError, match="broken = nan"):
        fit(Plain(), RegularizerCallback(Broken()))


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint")
def test_a_run_after_a_restored_one_starts_again(tmp_path):
    fit(Plain(), RegularizerCallback(MeanTeacher()), max_steps=2).save_checkpoint(tmp_path / "two.ckpt")
    teacher = MeanTeacher()
    callback = RegularizerCallback(teacher)
    fit(Plain(), callback, max_steps=3, ckpt_path=tmp_path / "two.ckpt")
    assert teacher.num_updates == 3
    fit(Plain(), callback, max_steps=1)
    assert teacher.num_updates == 1


# ---------------------------------------------------------------------------------------- what training_step gave the network


class Normalising(Plain):
    """A module whose batch has a fold and a weight before the inputs, and which normalises the inputs before `forward`."""

    def training_step(self, batch, batch_idx):
        weight, x, y = batch
        return (weight * F.cross_entropy(self((x - 0.5) / 2), y, reduction="none")).mean()


def weighted_batches():
    x, y = first_batch()
    return DataLoader([(torch.linspace(0, 1, len(x), dtype=torch.float64), x, y)], batch_size=None)


def test_the_callback_perturbs_what_training_step_gave_the_network():
    module = Normalising()
    plain = Normalising()
    fit(plain, loader=weighted_batches())
    fit(module, RegularizerCallback(VAT(eps=1.5)), loader=weighted_batches())
    added = [b - a for a, b in zip(plain.gradients[0], module.gradients[0], strict=True)]
    for found, expected in zip(added, gradient_by_hand(VAT(eps=1.5), x=(first_batch()[0] - 0.5) / 2), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


class Reader(Plain):
    """A module with a part that embeds ids, with a mask; `training_step` calls this part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"embeddings": nn.Embedding(9, 4), "head": nn.Linear(4, 3)}).double()
        self.model.forward = self.classify

    def classify(self, ids, attention_mask=None):
        m = attention_mask[..., None].double()
        return {"logits": self.model["head"]((self.model["embeddings"](ids).tanh() * m).sum(1) / m.sum(1))}

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch["ids"], attention_mask=batch["mask"])["logits"], batch["y"])

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append([p.grad.clone() for p in self.model.parameters()])


def test_the_callback_puts_r_on_the_output_of_a_layer_of_a_part():
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    batch = {"ids": ids, "mask": ids.clamp(max=1), "y": torch.tensor([0, 2])}
    plain, module = Reader(), Reader()
    fit(plain, loader=DataLoader([batch], batch_size=None))
    callback = RegularizerCallback(VAT(0.7), network="model", at="model.embeddings", mask="attention_mask")
    fit(module, callback, loader=DataLoader([batch], batch_size=None))
    by_hand = Reader()
    step = Step(by_hand.classify, (ids, batch["mask"]), at=by_hand.model["embeddings"], mask=batch["mask"], key=Key(5, 0, 0))
    wanted = torch.autograd.grad(VAT(0.7).term(step), [*by_hand.model.parameters()])
    for a, b, g in zip(plain.gradients[0], module.gradients[0], wanted, strict=True):
        torch.testing.assert_close(b - a, g, rtol=1e-8, atol=1e-12)


class Tagger(Reader):
    """A module with an output for each token, whose labels say which outputs count."""

    def classify(self, ids, attention_mask=None):
        return {"logits": self.model["head"](self.model["embeddings"](ids).tanh().cumsum(1))}

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch["ids"], attention_mask=batch["mask"])["logits"].mT, batch["y"])


def test_the_callback_leaves_out_the_outputs_that_do_not_count():
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    batch = {"ids": ids, "mask": ids.clamp(max=1), "y": torch.tensor([[0, -100, 1, -100], [-100, 2, -100, -100]])}
    plain, module, counted = Tagger(), Tagger(), batch["y"] != -100
    fit(plain, loader=DataLoader([batch], batch_size=None))
    options = {"network": "model", "at": "model.embeddings", "mask": "attention_mask", "class_dim": -1}
    callback = RegularizerCallback(VAT(0.7), output_mask=lambda batch: batch["y"] != -100, **options)
    fit(module, callback, loader=DataLoader([batch], batch_size=None))
    by_hand = Tagger()
    at = by_hand.model["embeddings"]
    options = {"at": at, "mask": batch["mask"], "output_mask": counted, "class_dim": -1, "key": Key(5, 0, 0)}
    wanted = torch.autograd.grad(VAT(0.7).term(Step(by_hand.classify, (ids, batch["mask"]), **options)), [*by_hand.model.parameters()])
    for a, b, g in zip(plain.gradients[0], module.gradients[0], wanted, strict=True):
        torch.testing.assert_close(b - a, g, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "body"}, "network='body' is no submodule of Reader: choose one of net, model"),
        ({"network": "net"}, "training_step must call net once, got 0 calls"),
        ({"network": "model"}, r"call must have one tensor of a floating dtype, got 0\. Name the argument"),
    ],
)
def test_a_network_whose_call_cannot_be_repeated_is_refused(options, message):
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    batch = {"ids": ids, "mask": ids.clamp(max=1), "y": torch.tensor([0, 2])}
    with pytest.raises(ValueError, match=message):
        fit(Reader(), RegularizerCallback(VAT(0.7), **options), loader=DataLoader([batch], batch_size=None))


def test_a_call_whose_inputs_were_changed_in_place_is_not_repeated():
    class InPlace(Plain):
        def forward(self, x):
            return self.net(x.sub_(0.5))

    with pytest.raises(ValueError, match="changes its inputs in place"):
        fit(InPlace(), RegularizerCallback(VAT(0.7)))


def test_what_forward_logs_and_counts_is_that_of_training_step_alone(tmp_path):
    class Counting(Plain):
        calls = 0

        def forward(self, x):
            self.calls = self.calls + 1
            self.log("calls", float(self.calls), on_step=True, on_epoch=True, reduce_fx="sum", batch_size=1)
            return super().forward(x)

    module = Counting()
    trainer = fit(module, RegularizerCallback(VAT(0.7)), max_steps=3, max_epochs=1)
    assert module.calls == 3
    assert trainer.callback_metrics["calls_epoch"] == 1 + 2 + 3


def test_a_weight_before_the_inputs_is_not_taken_for_them():
    with pytest.raises(ValueError, match=r"has shape \(4,\), but others have more dimensions"):
        first_tensors((torch.rand(4), torch.rand(4, 5), torch.zeros(4).long()))


class WithoutForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_without_forward_must_name_its_network():
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3), torch.arange(8) % 2), 4)

    def fit_it(**options):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
        pl.Trainer(max_steps=2, callbacks=[RegularizerCallback(VAT(eps=1.0), **options)], **quiet).fit(WithoutForward(), data)

    with pytest.raises(ValueError, match=r"WithoutForward has no forward: define it, .* RegularizerCallback\(…, network='net'\)"):
        fit_it()
    fit_it(network="net")
