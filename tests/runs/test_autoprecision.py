"""`trainer.precision=auto`: the choice, its reason, and that nothing else changes."""

import copy
import json
import warnings

import pytest
import torch

from vat import VAT, Entropy, MeanTeacher, RandomPerturbation
from vat.lightning.classifier import Classifier
from vat.regularizers import PublishedVAT
from vat.runs import autoprecision, report

FASTER, NO_FASTER = {"32-true": 1.0, "bf16-mixed": 0.5}, {"32-true": 1.0, "bf16-mixed": 0.95}
AUTO = "trainer.precision=auto"


@pytest.fixture
def measured(monkeypatch):
    """Let the measurement return these times."""

    def as_if(seconds):
        monkeypatch.setattr(autoprecision, "seconds_of_a_step", lambda *_: seconds)

    return as_if


@pytest.fixture
def printed(monkeypatch):
    lines = []
    monkeypatch.setattr(report.console, "print", lambda *parts, **_: lines.extend(map(str, parts)))
    return lines


def recorded(ran):
    return json.loads((ran.folder / "environment.json").read_text())["precision"]


@pytest.mark.parametrize(("seconds", "expected"), [(FASTER, "bf16-mixed"), (NO_FASTER, "32-true")])
def test_the_faster_precision_is_chosen_recorded_and_said_in_a_line(seconds, expected, measured, printed, job, differences):
    measured(seconds)
    ran, named = job(AUTO, name="auto"), job(f"trainer.precision={expected}", name="named")
    assert recorded(ran) == recorded(named) == expected
    (line,) = [line for line in printed if line.startswith("precision ")]
    assert line == f"precision {expected}: a step takes {1000 * seconds['bf16-mixed']:g} ms in bfloat16, 1e+03 ms in float32"
    states = [torch.load(one.checkpoint, weights_only=True)["state_dict"] for one in (ran, named)]
    assert differences(*states) == []


def test_without_auto_the_record_says_float32(job):
    assert recorded(job()) == "32-true"


def test_a_real_measurement_changes_neither_the_classifier_nor_the_random_numbers(job, differences):
    ran = job(AUTO, "vat.eps=1", name="auto")
    chosen = recorded(ran)
    assert chosen in ("32-true", "bf16-mixed")
    named = job(f"trainer.precision={chosen}", "vat.eps=1", name="named")
    assert differences(*(torch.load(one.checkpoint, weights_only=True)["state_dict"] for one in (ran, named))) == []


def test_times_are_those_of_both_precisions(compose):
    from hydra.utils import instantiate

    data = instantiate(compose("data.batch_size_unlabeled=16").data, _convert_="all")
    data.setup()
    seen = []

    class Seen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x):
            y = self.layer(x.flatten(1))
            seen.append((len(x), y.dtype))
            return y

    model = Classifier(Seen(), [VAT(1.0)], num_classes=10, optimizer=torch.optim.SGD)
    before = copy.deepcopy(model.network.state_dict())
    seconds = autoprecision.seconds_of_a_step(model, data.train_dataloader().batch(0), torch.device("cpu"))
    assert all(0 < value < 60 for value in seconds.values())
    assert set(seconds) == {"32-true", "bf16-mixed"}
    assert {size for size, _ in seen} == {data.batch_size_labeled, 16}  # complete batches
    assert {dtype for _, dtype in seen} == {torch.float32, torch.bfloat16}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("had", ["32-true", "bf16-mixed"])
def test_a_resumed_run_keeps_what_it_had(had, measured, job):
    measured(FASTER if had == "bf16-mixed" else NO_FASTER)
    first = job(AUTO, "optimizer=adam_linear", "scheduler.total_steps=10", name="first")
    measured(NO_FASTER if had == "bf16-mixed" else FASTER)
    with warnings.catch_warnings(record=True) as said:
        resumed = job(
            AUTO, "optimizer=adam_linear", "scheduler.total_steps=10", "trainer.max_steps=10", f"ckpt_path={first.checkpoint}", name="on"
        )
    assert recorded(resumed) == had
    assert not any("other settings" in str(warning.message) for warning in said)


def test_a_checkpoint_without_a_record_of_its_precision_was_of_its_configuration(compose):
    cfg = compose(AUTO)
    model = Classifier(torch.nn.Linear(2, 2), [], num_classes=2, optimizer=torch.optim.SGD)
    for named, expected in ((None, "32-true"), ("bf16-mixed", "bf16-mixed"), ("auto", "32-true"), (["nonsense"], "32-true")):
        saved = {"record": {"config": {"trainer": {"precision": named}}}}
        assert autoprecision.choose(cfg, model, None, saved)[0] == expected


@pytest.mark.parametrize(
    ("regularizer", "safe"),
    [
        (VAT(1.0), True),
        *((VAT(1.0, direction=name), True) for name in ("margin", "exact", "ascent", "random")),
        (RandomPerturbation(1.0), True),
        (Entropy(), True),
        (MeanTeacher(), True),
        (VAT(1.0, direction="finite_difference"), False),
        (VAT(1.0, divergence="gaussian"), False),  # its direction is finite_difference unless one is named
        (VAT(1.0, direction=lambda step, divergence, norm, create_graph=False: step.x), False),
        (PublishedVAT(1.0), False),
    ],
)
def test_directions_that_are_noise_in_bfloat16_stay_in_float32(regularizer, safe, measured, compose):
    measured(FASTER)
    model = Classifier(torch.nn.Linear(2, 2), [regularizer], num_classes=2, optimizer=torch.optim.SGD)

    class Data:
        def train_dataloader(self):
            return self

        def batch(self, _):
            return None

    precision, why = autoprecision.choose(compose(AUTO), model, Data(), None)
    assert precision == ("bf16-mixed" if safe else "32-true")
    assert safe or "not known to be safe in bfloat16" in why


def test_clipping_for_a_fused_optimizer_stays_in_float32(measured, job):
    measured(FASTER)
    assert recorded(job(AUTO, "trainer.gradient_clip_val=1.0")) == "32-true"


@pytest.mark.parametrize("override", ["trainer.devices=2", "trainer.strategy=ddp", "trainer.num_nodes=2"])
def test_several_processes_are_refused(override, main, monkeypatch):
    monkeypatch.setattr("vat.data.sets.digits.Digits.setup", lambda *_: pytest.fail("reached the data"))
    with pytest.raises(SystemExit, match=r"trainer\.precision=auto works only in one process\. Set trainer\.devices=1"):
        main(AUTO, override)
