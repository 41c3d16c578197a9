"""The LightningModule compared with plain torch: the loss, batch norm, ranks, evaluation."""

import copy
import csv
import math
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from vat import VAT, Adversarial, Entropy, MeanTeacher, PiModel, RandomPerturbation
from vat.data.datamodule import ROWS_WITH_GRAPH, ResidentDataModule
from vat.data.loader import ResidentLoader
from vat.data.splits import Split
from vat.directions import DIRECTIONS
from vat.lightning.classifier import Classifier, CrossEntropy
from vat.random_state import random_state
from vat.regularizers import Regularizer, by_unique_name, local_distributional_smoothness
from vat.step import Key

SEED = 11
CLASSES, FEATURES = 3, 6


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (60,), generator=generator)


def network(*, noisy=True):
    """A network with batch norm and dropout, or a smooth one without both."""
    torch.manual_seed(2)
    noise = [nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.3)] if noisy else [nn.Tanh()]
    return nn.Sequential(nn.Linear(FEATURES, 10), *noise, nn.Linear(10, CLASSES)).double()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def classifier(net, *regularizers, **options):
    return Classifier(net, regularizers, num_classes=CLASSES, optimizer=sgd, seed=SEED, **options)


def loader(*, supervised=False, labeled=8, unlabeled=12, **options):
    x, y = data()
    pool = None if supervised else torch.arange(60)
    sizes = {"batch_size_labeled": labeled, "batch_size_unlabeled": unlabeled}
    return ResidentLoader(x, y, torch.arange(20), pool, **sizes, steps_per_epoch=5, seed=SEED, **options)


def kl(clean, perturbed):
    p = clean.softmax(1)
    return (p * (clean.log_softmax(1) - perturbed.log_softmax(1))).sum(1).mean()


def vat_by_hand(net, x, key, eps):
    """VAT as in the papers, in plain torch: one power iteration by finite differences; all passes share masks and batch."""
    net = copy.deepcopy(net)  # its running statistics may change: training mode does not read them

    def logits(inputs):
        with random_state(key.own("network"), x.device):
            return net(inputs)

    clean = logits(x).detach()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(key.shared("direction")), dtype=x.dtype)
    d = noise / noise.norm(dim=1, keepdim=True)
    r = (1e-3 * x.norm(dim=1).mean() * d).requires_grad_()
    (g,) = torch.autograd.grad(kl(clean, logits(x + r)), r)
    term = kl(clean, logits(x + eps * g / g.norm(dim=1, keepdim=True)))
    return term, torch.autograd.grad(term, list(net.parameters()))


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_cross_entropy_plus_each_term_and_so_is_its_gradient():
    net = network()
    reference = copy.deepcopy(net)
    model = classifier(net, VAT(eps=1.5, direction="finite_difference"), Entropy(weight=0.7))
    batch = loader().batch(3)
    terms = model.terms(batch)
    assert list(terms) == ["cross_entropy", "vat", "entropy"]

    key = Key(SEED, 3, 0)
    vat_term, vat_gradient = vat_by_hand(reference, batch.unlabeled.x, key, eps=1.5)
    with random_state(key.own("network"), torch.device("cpu")):
        for_entropy = copy.deepcopy(reference)
        log_p = for_entropy(batch.unlabeled.x).log_softmax(1)
    entropy = -0.7 * (log_p.exp() * log_p).sum(1).mean()
    with random_state(key.own("labeled"), torch.device("cpu")):
        for_labels = copy.deepcopy(reference)
        cross_entropy = F.cross_entropy(for_labels(batch.labeled.x), batch.labeled.y)

    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy, **close)
    torch.testing.assert_close(terms["vat"], vat_term, **close)
    torch.testing.assert_close(terms["entropy"], entropy, **close)
    expected = [
        sum(gradients)
        for gradients in zip(
            vat_gradient,
            torch.autograd.grad(entropy, list(for_entropy.parameters())),
            torch.autograd.grad(cross_entropy, list(for_labels.parameters())),
            strict=True,
        )
    ]
    found = torch.autograd.grad(sum(terms.values()), list(net.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_the_key_is_of_the_run_the_micro_step_and_the_rank():
    first, again = (classifier(network(), VAT(eps=1.0)).terms(loader().batch(3))["vat"] for _ in range(2))
    assert first == again
    batch = loader().batch(3)
    assert classifier(network(), VAT(eps=1.0)).terms(batch._replace(micro_step=4))["vat"] != first
    other = Classifier(network(), [VAT(eps=1.0)], num_classes=CLASSES, optimizer=sgd, seed=SEED + 1)
    assert other.terms(batch)["vat"] != first


def test_the_default_generator_is_neither_read_nor_moved():
    model = classifier(network(), VAT(eps=1.0), PiModel(), Adversarial(eps=1.0))
    before = torch.get_rng_state()
    model.terms(loader().batch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_regularizers_of_one_kind_have_different_names():
    model = classifier(network(), VAT(eps=1.0), VAT(eps=2.0), RandomPerturbation(eps=1.0), VAT(eps=3.0))
    terms = model.terms(loader().batch(0))
    assert list(terms) == ["cross_entropy", "vat", "vat_2", "random_perturbation", "vat_3"]
    assert terms["vat"] < terms["vat_2"] < terms["vat_3"]
    assert list(by_unique_name([VAT(eps=1.0), Entropy(), VAT(eps=2.0)])) == ["vat", "entropy", "vat_2"]
    report = {}
    terms = model.terms(loader().batch(0), report)
    for name in ("vat", "vat_2", "vat_3"):  # each with separate diagnostics
        torch.testing.assert_close(report[f"{name}/lds"], terms[name].detach())


# ----------------------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize(
    "regularizers",
    [
        [],
        [VAT(eps=1.0)],
        [VAT(eps=1.0, direction="exact"), Entropy()],
        [Adversarial(eps=1.0)],
        [Adversarial(eps=1.0), VAT(eps=1.0, choose_sign=True), PiModel()],
    ],
    ids=lambda found: "+".join(r.name for r in found) or "none",
)
def test_running_statistics_move_as_one_clean_labelled_pass_moves_them(supervised, regularizers):
    net = network()
    reference = copy.deepcopy(net)
    batch = loader(supervised=supervised).batch(1)
    sum(classifier(net, *regularizers).terms(batch, {}).values()).backward()
    reference(batch.labeled.x)
    assert net[1].num_batches_tracked == 1
    torch.testing.assert_close(net[1].running_mean, reference[1].running_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net[1].running_var, reference[1].running_var, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("supervised", "regularizer", "passes"),
    [
        (True, VAT(eps=1.0, direction="random"), 2),  # clean, perturbed
        (True, VAT(eps=1.0), 2),
        (False, VAT(eps=1.0), 3),  # plus the clean pass of the unlabelled rows
        (True, VAT(eps=1.0, direction="finite_difference"), 3),  # plus one probe
        (False, VAT(eps=1.0, direction="finite_difference"), 4),
        (True, Adversarial(eps=1.0), 2),
        (False, Adversarial(eps=1.0), 2),
        (True, Entropy(), 1),
        (False, Entropy(), 2),
    ],
    ids=lambda value: value.name if isinstance(value, Regularizer) else str(value),
)
def test_supervised_training_shares_the_clean_pass(supervised, regularizer, passes):
    net, count = network(), []
    net.register_forward_hook(lambda *_: count.append(1))
    classifier(net, regularizer).terms(loader(supervised=supervised).batch(0))
    assert len(count) == passes


# ---------------------------------------------------------------------------------------------------------------- ranks


class Ranked(Classifier):
    """A classifier that acts as one of several processes."""

    rank, world = 0, 1
    global_rank = property(lambda self: self.rank)
    _world_size = property(lambda self: self.world)


def terms_and_gradient(rank, world, regularizers, batches, **options):
    net = network(noisy=False)
    model = Ranked(net, copy.deepcopy(regularizers), num_classes=CLASSES, optimizer=sgd, seed=SEED)
    model.rank, model.world = rank, world
    for r in model.regularizers.values():
        r.on_fit_start(net)
    terms = model.terms(loader(rank=rank, world_size=world, **batches, **options).batch(2))
    return {k: v.detach() for k, v in terms.items()}, torch.autograd.grad(sum(terms.values()), list(net.parameters()))


ALL = [VAT(eps=1.0, direction=name) for name in DIRECTIONS if name != "finite_difference"]
ALL += [Adversarial(eps=1.0), Entropy(), VAT(eps=1.0, direction="ascent", num_power_iterations=3, norm="linf")]
ALL += [VAT(eps=1.0, direction="exact", gradient_through_r=True, gradient_through_target=True, choose_sign=True)]
RTOL = 1e-10  # float64, over a few hundred operations


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("regularizer", ALL, ids=lambda r: f"{r.name}-{getattr(getattr(r, 'direction', r), '__name__', '')}")
def test_unequal_slices_of_two_ranks_average_to_the_loss_of_one_process(regularizer, supervised):
    sizes = {"labeled": 7, "unlabeled": 7, "supervised": supervised}
    one, gradient = terms_and_gradient(0, 1, [regularizer], sizes)
    halves = [terms_and_gradient(rank, 2, [regularizer], sizes) for rank in range(2)]
    for name, value in one.items():
        mean = (halves[0][0][name] + halves[1][0][name]) / 2
        torch.testing.assert_close(mean, value, rtol=RTOL, atol=1e-13)
    for whole, *parts in zip(gradient, *(half[1] for half in halves), strict=True):
        torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-8, atol=1e-11)
    assert halves[0][0]["cross_entropy"] != pytest.approx(halves[1][0]["cross_entropy"].item(), rel=1e-3)


def test_slices_with_finite_differences_average_to_one_process_up_to_the_length_of_the_probe():
    # The probe's length is a mean over the rows of one rank, so it differs a little between ranks, and d with it by O(ξ).
    sizes = {"labeled": 7, "unlabeled": 7}
    one, _ = terms_and_gradient(0, 1, [VAT(eps=1.0)], sizes)
    halves = [terms_and_gradient(rank, 2, [VAT(eps=1.0)], sizes)[0] for rank in range(2)]
    assert (halves[0]["vat"] + halves[1]["vat"]).item() / 2 == pytest.approx(one["vat"].item(), rel=1e-3)


def test_weights_of_the_slices_are_their_shares_of_the_batch():
    parts = [loader(rank=rank, world_size=2, labeled=7).batch(0).labeled for rank in range(2)]
    model = Ranked(network(noisy=False), num_classes=CLASSES, optimizer=sgd)
    model.world = 2
    assert [len(part.x) for part in parts] == [3, 4]
    assert [model._share(part) for part in parts] == [6 / 7, 8 / 7]


# ------------------------------------------------------------------------------------------------------- under a trainer


class Points(ResidentDataModule):
    """Sixty points in three classes."""

    unit = "units"
    lds_eps = 0.5

    def __init__(self, *, spoil=lambda x, y: None, num_labeled=20, **options):
        sizes = {"batch_size_labeled": 8, "batch_size_unlabeled": 12, "steps_per_epoch": 4}
        super().__init__(num_labeled=num_labeled, **(sizes | options))
        self.spoil = spoil

    def load(self):
        self.class_names = [str(i) for i in range(CLASSES)]
        x, y = data()
        self.spoil(x, y)
        return x, y, Split(torch.arange(20), torch.arange(40), torch.arange(40, 50), torch.arange(50, 60))


def trainer(folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    settings = {"max_steps": 4, "max_epochs": -1, "inference_mode": False, "accelerator": "cpu", "devices": 1}
    settings |= {"use_distributed_sampler": False, "enable_checkpointing": bool(callbacks)}
    return pl.Trainer(callbacks=list(callbacks), default_root_dir=folder, **(quiet | settings | options))


class Spoiled(Regularizer):
    """A term that is NaN from the third step."""

    def penalty(self, step):
        p = next(step.module.parameters())
        return p.sum() * (0.0 if self.num_updates < 2 else math.nan)


@pytest.mark.parametrize("save_last", [True, False])
def test_a_term_that_is_not_finite_stops_the_run_and_names_step_term_and_checkpoint(tmp_path, save_last):
    net = network()
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=save_last)
    with pytest.raises(FloatingPointError) as error:
        trainer(tmp_path, checkpoints).fit(classifier(net, VAT(eps=1.0), Spoiled()), Points())
    message = str(error.value)
    assert "optimizer step 2" in message
    assert "spoiled = nan" in message
    assert str(tmp_path / ("last.ckpt" if save_last else "step=2.ckpt")) in message
    assert "ckpt_path" in message
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path):
    class Spoiling(pl.Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            nn.init.constant_(pl_module.network[-1].bias, math.nan)

    with pytest.raises(FloatingPointError, match="val/cross_entropy = nan"):
        trainer(tmp_path, Spoiling(), enable_checkpointing=False).fit(classifier(network()), Points())


@pytest.mark.parametrize(("stage", "training"), [("fit", True), ("validate", False), ("test", False)])
def test_a_stop_iteration_inside_the_network_is_an_error_and_not_the_end_of_the_data(tmp_path, stage, training):
    class Stopping(nn.Sequential):
        def forward(self, x):
            return next(iter(())) if self.training == training else super().forward(x)

    run = getattr(trainer(tmp_path, enable_checkpointing=False), stage)
    with pytest.raises(RuntimeError, match=r"_step: a next\(\) inside"):
        run(classifier(Stopping(*network(noisy=False))), Points())


@pytest.mark.parametrize(("value", "message"), [(CLASSES, r"0\.\.2, got 3 in row 5"), (-1, r"0\.\.2, got -1 in row 5")])
def test_labels_out_of_range_are_refused_with_their_row(tmp_path, value, message):
    def spoil(x, y):
        y[5] = value

    check_refused(tmp_path, spoil, message)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused_with_their_row(tmp_path, value):
    def spoil(x, y):
        x[7, 2] = value
        x[9] = value

    check_refused(tmp_path, spoil, r"got NaN or infinity in row 7 .affected rows: 2.\. Repair")


def check_refused(folder, spoil, message):
    net = network()
    before = copy.deepcopy(net.state_dict())
    checkpoints = ModelCheckpoint(folder / "checkpoints", save_last=True)
    with pytest.raises(ValueError, match=message):
        trainer(folder, checkpoints).fit(classifier(net), Points(spoil=spoil))
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert not list(folder.rglob("*.ckpt"))


def test_every_optimizer_step_calls_the_regularizers_once(tmp_path):
    teacher = MeanTeacher(decay=0.5)
    model = classifier(network(), teacher)
    run = trainer(tmp_path, accumulate_grad_batches=2, max_steps=3)
    run.fit(model, Points(steps_per_epoch=5))
    assert run.global_step == teacher.num_updates == 3


# ------------------------------------------------------------------------------------------------------------------ logs


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def logged(job):
    return job("logger=csv", "trainer.max_steps=6", "data.steps_per_epoch=6", "trainer.log_every_n_steps=2", "test=none")


def test_terms_and_diagnostics_are_logged_every_n_steps(logged):
    names = "cross_entropy vat loss lr vat/lds vat/kl_random vat/kl_at_zero vat/kl_ascent vat/curvature vat/cosine vat/flip_rate vat/margin"
    training = [row for row in rows(logged.folder) if row["train/loss"]]
    assert [int(row["step"]) for row in training] == [1, 3, 5]
    for row in training:
        values = {name: float(row[f"train/{name}"]) for name in names.split()}
        assert values["vat/kl_at_zero"] == 0
        assert values["loss"] == pytest.approx(values["cross_entropy"] + values["vat"], rel=1e-6)
        assert values["vat/lds"] == pytest.approx(values["vat"], rel=1e-6)
        assert 0 < values["vat/kl_random"] < values["vat/lds"]
        assert 0 <= values["vat/flip_rate"] <= 1
    rates = [float(row["train/lr"]) for row in training]
    cosine = [0.002 * (1 + math.cos(math.pi * step / 6)) / 2 for step in (1, 3, 5)]
    assert rates == pytest.approx(cosine, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------ evaluation


def calibration_error(probabilities, y, bins=15):
    """ECE by its definition: Σ over bins of |accuracy − confidence| × the bin's share."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == y
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    found = [(correct[number == b], confidence[number == b]) for b in range(bins)]
    return sum(abs(c.mean() - p.mean()) * len(c) / len(y) for c, p in found if len(c))


def metrics_by_hand(net, x, y):
    with torch.no_grad():
        probabilities = net.eval()(x).double().softmax(1).numpy()
    y = y.numpy()
    return {
        "accuracy": (probabilities.argmax(1) == y).mean(),
        "cross_entropy": -np.log(probabilities[np.arange(len(y)), y]).mean(),
        "calibration_error": calibration_error(probabilities, y),
    }


def loaded(checkpoint):
    from vat.runs import records

    return records.load_network(checkpoint)


def digits():
    from vat.data.sets.digits import Digits

    found = Digits()
    found.setup()
    return found


def assert_metrics(metrics, net, *stages):
    images = digits()
    for stage in stages:
        part = images.split.validation if stage == "val" else images.split.test
        for name, value in metrics_by_hand(net, images.x[part], images.y[part]).items():
            assert metrics[f"{stage}/{name}"] == pytest.approx(value, rel=2e-5), f"{stage}/{name}"


def test_probabilities_instead_of_logits_give_a_warning():
    x, y = data()
    with pytest.warns(UserWarning, match="outputs of Sequential must be logits, got values >= 0 that sum to 1, as after a softmax"):
        classifier(nn.Sequential(network(), nn.Softmax(1))).validation_step((x, y), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (network(), nn.Sequential(network(), nn.Sigmoid()), nn.Sequential(network(), nn.LogSoftmax(1))):
            classifier(other).validation_step((x, y), 0)


def test_validation_and_test_metrics_equal_a_hand_computation(job, monkeypatch):
    from vat.data import datamodule

    monkeypatch.setattr(datamodule, "EVALUATION_BATCH_SIZE", 64)  # several batches of unequal size
    run = job("optimizer.lr=0.02")
    assert_metrics(run.metrics, loaded(run.checkpoint), "val", "test")
    assert 0.2 < run.metrics["test/accuracy"] < 1


def test_the_lds_of_the_test_is_the_mean_over_its_examples(job):
    run = job("lds_eps=1.5")
    images, net = digits(), loaded(run.checkpoint)
    x = images.x[images.split.test]
    # In one batch. Parts as large as a training step give the same, because directions depend only on a row's place.
    assert len(x) > ROWS_WITH_GRAPH
    lds = local_distributional_smoothness(net, x, eps=1.5, key=Key(0, 0, 0)).mean().item()
    assert run.metrics["test/lds"] == pytest.approx(lds, rel=1e-4)
    other = local_distributional_smoothness(net, x, eps=2.0, key=Key(0, 0, 0)).mean().item()
    assert run.metrics["test/lds"] != pytest.approx(other, rel=1e-2)


def test_a_checkpoint_loads_without_executing_code_and_holds_the_record(job):
    run = job("seed=3", "test=none")
    record = torch.load(run.checkpoint, weights_only=True)["record"]
    from vat.data.sets.digits import Digits

    images = Digits(seed=3)
    images.setup()
    assert record["config"]["seed"] == 3
    assert record["config"]["vat"]["eps"] == 2.0
    assert record["config"]["scheduler"]["T_max"] == 5  # interpolations are resolved
    assert record["class_names"] == [str(i) for i in range(10)]
    assert record["input_shape"] == [1, 8, 8]
    assert record["split"] == images.split.digest
    assert record["unit"] == images.unit


def test_reestimated_statistics_are_those_of_the_pool(job):
    from vat.batch_norm import reestimate_batch_norm

    run = job("reestimate_batch_norm=true", "optimizer.lr=0.02")
    net, images = loaded(run.checkpoint), digits()
    reestimate_batch_norm(net, [images.x[images.split.unlabeled]])
    assert_metrics(run.metrics, net, "val", "test")


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_the_last_checkpoint_of_a_run_that_ends_between_validations_holds_reestimated_statistics(job, ema):
    run = job("reestimate_batch_norm=true", "optimizer.lr=0.02", "trainer.max_steps=7", f"ema={ema}")
    assert_metrics(run.metrics, loaded(run.checkpoint), "val", "test")


# ---------------------------------------------------------------------------------------------------- averaged weights


@pytest.fixture
def followed(monkeypatch):
    """Record the network after every optimizer step."""
    states = []
    step = Classifier.optimizer_step

    def following(self, *args, **kwargs):
        step(self, *args, **kwargs)
        states.append(copy.deepcopy(self.network.state_dict()))

    monkeypatch.setattr(Classifier, "optimizer_step", following)
    return states


def averaged(states, decay):
    found = {name: t.double() for name, t in states[0].items()}
    for state in states[1:]:
        found = {name: decay * t + (1 - decay) * state[name].double() for name, t in found.items()}
    return found


@pytest.mark.parametrize("test", ["last", "best"])
def test_with_ema_the_averaged_weights_are_evaluated_tested_and_saved(job, followed, test):
    run = job("ema=0.9", "optimizer.lr=0.02", f"test={test}")
    assert len(followed) == 5
    net = loaded(run.checkpoint)
    expected = averaged(followed, 0.9)
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(value, followed[-1][name], rtol=1e-3, atol=1e-4), "the average is no average"
    assert_metrics(run.metrics, net, "val", "test")


def test_with_mean_teacher_the_teacher_is_evaluated(job):
    run = job("regularizer=mean_teacher", "mean_teacher.decay=0.6", "test=none")
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    assert checkpoint["record"]["config"]["ema"] == 0.6
    teacher = checkpoint["current_model_state"]["regularizers.mean_teacher._extra_state"]["teacher"]
    assert set(teacher) == {name for name, _ in loaded(run.checkpoint).named_parameters()}
    assert_metrics(run.metrics, loaded(run.checkpoint), "val")


def test_cross_entropy_is_the_mean_over_examples_and_not_over_batches():
    metric, logits, y = CrossEntropy(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    metric.update(logits[:4], y[:4])
    metric.update(logits[4:], y[4:])
    assert metric.compute().item() == pytest.approx(F.cross_entropy(logits, y).item())


def test_the_warnings_at_the_end_judge_the_mean_of_the_last_logged_steps(monkeypatch):
    """One of ten batches does not decide: neither one on which r is no better than a random r, nor one on which it is better."""
    from types import SimpleNamespace

    from vat.lightning import training

    shown = []  # not by `caplog`, which depends on the logging that other tests configure
    monkeypatch.setattr(training, "log", SimpleNamespace(warning=lambda text, *values: shown.append(text % values)))
    bad, good = ({"vat/lds": torch.tensor(lds), "vat/kl_random": torch.tensor(0.01)} for lds in (0.01, 0.03))
    for reports, said in (([*[good] * 9, bad], 0), ([*[bad] * 9, good], 1)):
        shown.clear()
        found = training.last_reports()
        found.extend([*[good] * 50, *reports])
        assert len(found) == training.LAST_REPORTS == 10
        training.explain(SimpleNamespace(is_global_zero=True), {"vat": VAT(1.0)}, found)
        assert ["hardly better than noise" in text for text in shown] == [True] * said
