"""The evaluation: numbers counted by hand, resuming, masked models that are flagged, and an honest one that is not."""

import json
import math

import pytest
import torch
from networks import seeded
from torch import nn

from vat.attacks import APGD, FGM, PGD, Attack, AutoAttack, RandomNoise, Square, predictions
from vat.evaluation import robustness
from vat.evaluation.corruptions import SEVERITIES, corrupt
from vat.evaluation.ledger import Ledger
from vat.evaluation.robustness import evaluate

CENTRES = torch.tensor([[-1.0, 0.0, 0.0, 0.5], [1.0, 0.0, 0.0, 0.5], [0.0, 1.5, 0.0, -0.5]])


def examples(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return CENTRES[y] + 0.3 * torch.randn(n, 4, generator=generator), y


def batches(n=120, size=50):
    x, y = examples(n)
    return list(zip(x.split(size), y.split(size), strict=True))


class Blobs(nn.Module):
    """An honest network: the class of the nearest centre, with a tanh."""

    def __init__(self, scale=3.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def logits(self, x):
        bent = x + 0.3 * torch.tanh(3 * x.flip(1))
        return -self.scale * (bent[:, None] - CENTRES).square().sum(2)

    def forward(self, x):
        return self.logits(x)


class Quantised(Blobs):
    def forward(self, x):
        return (self.logits(x) * 2).round() / 2


class Saturated(Blobs):
    def forward(self, x):
        return 3e3 * self.logits(x)


class Noisy(Blobs):
    def forward(self, x):
        return self.logits(x) + torch.randn(len(x), 3)


ATTACKS = (
    RandomNoise(),
    FGM(),
    PGD(steps=10),
    APGD(steps=10, loss="dlr"),
    APGD(steps=10, loss="dlr", targets=2),
    Square(queries=40),
)
GRID = {"l2": (0.2, 0.5, 1.0), "linf": (0.2, 0.4)}


def measured(network, **options):
    return evaluate(network, batches(), **({"attacks": ATTACKS, "eps": GRID, "lds_eps": 0.5} | options))


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def honest():
    return measured(Blobs())


def test_accuracy_and_cross_entropy_are_those_of_all_examples(honest):
    x, y = examples()
    logits = Blobs()(x).detach()
    assert honest["examples"] == 120
    assert honest["clean"]["accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert honest["clean"]["cross_entropy"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)


def test_calibration_error_is_torchmetrics(honest):
    from torchmetrics.functional.classification import multiclass_calibration_error

    x, y = examples()
    expected = multiclass_calibration_error(Blobs()(x).softmax(1).detach(), y, num_classes=3, n_bins=15)
    assert honest["clean"]["calibration_error"] == pytest.approx(float(expected), abs=1e-6)


def test_margin_distance_and_lipschitz_constant_of_a_linear_network_are_exact():
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    found = evaluate(
        lambda x: x @ weight.T, [(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0, 0]]), torch.tensor([1, 1]))], attacks=(), eps={}
    )
    assert found["clean"]["margin"] == pytest.approx((3 + 8) / 2)
    assert found["clean"]["distance"] == pytest.approx((3 / 5 + 8 / 5) / 2)
    assert found["clean"]["lipschitz"] == pytest.approx(5.0)


def test_lds_is_that_of_the_public_function(honest):
    from vat import local_distributional_smoothness
    from vat.step import Key

    x, _ = examples()
    expected = [local_distributional_smoothness(Blobs(), part, eps=0.5, key=Key(0, i)) for i, part in enumerate(x.split(50))]
    assert honest["clean"]["lds"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-4)


def test_accuracy_falls_with_eps_and_the_worst_case_is_the_lowest(honest):
    for norm, found in honest["robust"].items():
        assert found["eps"] == list(GRID[norm])
        for accuracies in found["accuracy"].values():
            assert accuracies == sorted(accuracies, reverse=True)
            assert accuracies[0] <= honest["clean"]["accuracy"]
        lowest = [min(a) for a in zip(*(a for name, a in found["accuracy"].items() if name != "worst"), strict=True)]
        assert all(worst <= low for worst, low in zip(found["accuracy"]["worst"], lowest, strict=True))
    assert honest["robust"]["l2"]["accuracy"]["worst"][2] < 0.8 * honest["clean"]["accuracy"]


class Counted(Attack):
    """Wraps an attack and counts the examples that it gets."""

    def __init__(self, attack, *, on_the_rest=False):
        self.attack, self.on_the_rest, self.white_box, self.given = attack, on_the_rest, attack.white_box, 0

    @property
    def name(self):
        return f"counted_{self.attack.name}"

    def __call__(self, network, x, y, threat, generator):
        self.given += len(x)
        return self.attack(network, x, y, threat, generator)


@pytest.mark.parametrize(("on_the_rest", "cascade"), [(False, False), (True, False), (False, True)])
def test_an_attack_skips_what_gradients_before_it_misclassified(on_the_rest, cascade):
    radii = (0.5, 1.0)
    later = Counted(APGD(steps=5), on_the_rest=on_the_rest)
    found = measured(Blobs(), attacks=(RandomNoise(draws=5), PGD(steps=10), later), eps={"l2": radii}, cascade=cascade)
    stands = {name: [round(120 * a) for a in accuracy] for name, accuracy in found["robust"]["l2"]["accuracy"].items()}
    assert stands["pgd"][0] > stands["pgd"][1]
    if on_the_rest or cascade:  # it still gets what only random noise misclassified
        assert later.given == sum(stands["pgd"])
        assert stands["worst"] == stands["counted_apgd_ce"]
    else:
        assert later.given == round(120 * found["clean"]["accuracy"]) + stands["counted_apgd_ce"][0]


def test_a_cascade_has_the_same_worst_case(honest):
    found = measured(Blobs(), cascade=True)
    for norm in GRID:
        assert found["robust"][norm]["accuracy"]["worst"] == pytest.approx(honest["robust"][norm]["accuracy"]["worst"], abs=0.02)
    assert found["warnings"] == {}


def test_a_masked_network_is_flagged_in_a_cascade_too():
    assert {"black_box_l2", "black_box_linf"} <= measured(Quantised(), cascade=True)["warnings"].keys()


def test_what_an_ensemble_misclassifies_without_gradients_does_not_count_for_gradients():
    class Ensemble(Square):
        white_box = AutoAttack.white_box

    found = measured(Quantised(), attacks=(*ATTACKS[:-1], Ensemble(queries=40), ATTACKS[-1]))
    assert {"black_box_l2", "black_box_linf"} <= found["warnings"].keys()


def test_an_eps_of_zero_leaves_the_clean_accuracy():
    found = measured(Blobs(), eps={"l2": (0.0,), "linf": (0.0, 0.4)})
    for accuracies in found["robust"]["l2"]["accuracy"].values():
        assert accuracies == [found["clean"]["accuracy"]]


def test_the_result_is_plain_json(honest):
    assert json.loads(json.dumps(honest, allow_nan=False)) == honest


def test_an_evaluation_does_not_change_the_network():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    network[0].weight.requires_grad_(False)
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, trainable = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    state = torch.get_rng_state()
    measured(network, attacks=(PGD(steps=2),))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == trainable
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------------------- resuming


class CutOffError(Exception):
    pass


def stop_after(parts):
    calls = []

    def progress(done, total, part):
        calls.append(part)
        if len(calls) > parts:
            raise CutOffError

    return progress


@pytest.mark.parametrize("network", [Blobs(), Noisy()], ids=["honest", "noisy"])
def test_an_evaluation_resumes_exactly_where_it_was_interrupted(tmp_path, network):
    small = {"attacks": ATTACKS[:4], "eps": {"l2": (0.5,)}, "lds_eps": 0.5}
    whole = evaluate(network, batches(), path=tmp_path / "whole.jsonl", **small)
    path, ran = tmp_path / "broken.jsonl", []
    for parts in (1, 4, 7, 30):
        try:
            found = evaluate(network, batches(), path=path, progress=stop_after(parts), **small)
        except CutOffError:
            ran.append(len(path.read_text().splitlines()) - 1)
            with path.open("a") as file:  # killed while it wrote a line
                file.write('{"batch": 0, "part": "cle')
    assert ran == [1, 5 - 1, 7]
    assert found == whole
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    whole = measured(Blobs(), path=tmp_path / "results.jsonl")
    monkeypatch.setattr(robustness, "clean_measures", None)
    assert measured(Blobs(), attacks=[Unusable(a.name, a.white_box) for a in ATTACKS], path=tmp_path / "results.jsonl") == whole


class Unusable(Attack):
    def __init__(self, name, white_box):
        self._name, self.white_box = name, white_box

    @property
    def name(self):
        return self._name


def test_a_file_of_other_settings_is_refused(tmp_path):
    small = {"attacks": (FGM(),), "eps": {"l2": (0.5,)}, "path": tmp_path / "results.jsonl"}
    evaluate(Blobs(), batches(), settings={"seed": 0}, **small)
    with pytest.raises(ValueError, match="started with other settings"):
        evaluate(Blobs(), batches(), settings={"seed": 1}, **small)


def test_a_file_that_another_process_writes_is_refused(tmp_path):
    with Ledger(tmp_path / "results.jsonl", {}), pytest.raises(OSError, match="another process is writing"):
        evaluate(Blobs(), batches(), attacks=(), eps={}, path=tmp_path / "results.jsonl")


# --------------------------------------------------------------------------------------------------------- masked models


def test_an_honest_network_is_not_flagged(honest):
    assert honest["warnings"] == {}


def test_an_honest_linear_network_is_not_flagged():
    assert measured(lambda x: 4 * x @ CENTRES.T)["warnings"] == {}


@pytest.mark.parametrize(
    ("network", "checks"),
    [
        (Quantised(), {"zero_gradients", "more_steps", "black_box_l2", "black_box_linf"}),
        (Saturated(), {"zero_gradients"}),
        (Noisy(), {"randomness"}),
    ],
    ids=["quantised", "saturated", "noisy"],
)
def test_a_masked_network_is_flagged_in_words(network, checks):
    found = measured(network)["warnings"]
    assert checks <= found.keys()
    assert all(len(text.split()) > 12 for text in found.values())


def test_a_network_of_steps_that_seems_robust_to_everything_is_flagged():
    def steps(x):  # a random search of the corners does not find the other class in so many dimensions
        return (2 * x.mean(1)).round()

    x = torch.rand(60, 64, generator=seeded()) - 1
    found = evaluate(steps, [(x, torch.zeros(60, dtype=torch.long))], attacks=(), eps={}, bounds=(-1.0, 1.0))["warnings"]
    assert {"huge_eps", "zero_gradients"} <= found.keys()


@pytest.mark.parametrize(
    ("eps", "flagged"),
    [
        ({"linf": (8.0,)}, True),
        ({"l2": (16.0,)}, True),
        ({"linf": (8 / 255 / 255,)}, True),
        ({"linf": (0.1, 1.0), "l2": (0.1, 2.0)}, False),
    ],
    ids=str,
)
def test_an_eps_in_other_units_than_the_inputs_is_flagged(eps, flagged):
    found = measured(Blobs(), attacks=(), eps=eps)["warnings"]
    assert any(name.startswith("units_") for name in found) == flagged


def test_a_network_that_is_always_wrong_shows_nothing():
    found = evaluate(Blobs(), [(x, (y + 1) % 3) for x, y in batches(9, 9)], attacks=(FGM(),), eps={"l2": (0.5,)})
    assert "no_example_right" in found["warnings"]
    assert found["clean"]["distance"] is None


# ------------------------------------------------------------------------------------------------------------ bad input


class Cheat(Attack):
    def __call__(self, network, x, y, threat, generator):
        return x + 2 * threat.eps


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"eps": {"l3": (1.0,)}}, ValueError, "unknown norm 'l3': choose one of l2, linf"),
        ({"eps": {"l2": (-1.0,)}}, ValueError, "eps.l2 must hold finite numbers >= 0, got -1.0"),
        ({"eps": {"l2": (math.nan,)}}, ValueError, "eps.l2 must hold finite numbers >= 0, got nan"),
        ({"attacks": (FGM(), FGM())}, ValueError, "distinct names, got fgm, fgm"),
        ({"attacks": (Cheat(),)}, RuntimeError, "attack cheat must stay in the ball of radius 0.2"),
        ({"bounds": (0.0, 1.0)}, ValueError, r"inputs must be in the declared range \[0, 1\], got values from -"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else str(value),
)
def test_a_mistake_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        measured(Blobs(), **options)


def test_an_empty_test_set_is_refused():
    with pytest.raises(ValueError, match="test part is empty"):
        evaluate(Blobs(), [], attacks=(), eps={})


def test_probabilities_instead_of_logits_are_refused():
    with pytest.raises(ValueError, match="must be logits, got probabilities"):
        measured(lambda x: Blobs()(x).softmax(1))


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="outputs on clean inputs are NaN or infinite"):
        measured(lambda x: Blobs()(x) / 0)


# ----------------------------------------------------------------------------------------------------------- corruptions


@pytest.mark.parametrize("kind", ["blur", "contrast"])
def test_accuracy_under_corruptions_is_that_of_all_batches(kind):
    x, w = torch.rand(90, 1, 6, 6, generator=seeded()), torch.randn(36, generator=seeded())

    def network(x):
        s = x.flatten(1) @ w - 0.5 * w.sum() - 0.3
        return torch.stack([-s, s], 1)

    y, bounds = predictions(network, x), (0.0, 1.0)
    found = evaluate(network, list(zip(x.split(40), y.split(40), strict=True)), attacks=(), eps={}, bounds=bounds)["corruptions"]
    corrupted = [corrupt(kind, x, severity, seeded(), bounds) for severity in SEVERITIES]
    expected = [float((predictions(network, c) == y).double().mean()) for c in corrupted]
    assert found[kind] == pytest.approx(expected)
    assert 0.5 < min(expected) < 1


def test_the_steepest_slope_is_that_of_the_ball_and_not_of_its_centre():
    def cubic(x):
        s = x[:, 0] ** 3 + x[:, 0]
        return torch.stack([torch.zeros_like(s), s], 1)

    x = torch.zeros(200, 3)
    x[:, 0] = 1.0
    clean = evaluate(cubic, [(x, torch.ones(200, dtype=torch.long))], attacks=(), eps={}, lds_eps=1.0)["clean"]
    assert 4.5 < clean["lipschitz"] <= 13.01  # 4 at the centre, 13 at the edge of the ball
    assert clean["distance"] == pytest.approx(2 / 4)


def test_an_attack_that_leaves_the_range_of_inputs_is_caught():
    class Below(Attack):
        def __call__(self, network, x, y, threat, generator):
            return x - threat.eps / 2

    given = [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(RuntimeError, match=r"must stay in the ball .* and in the range"):
        evaluate(lambda x: torch.stack([x.sum(1), x.sum(1) - 1], 1), given, attacks=(Below(),), eps={"linf": (0.2,)}, bounds=(0.0, 1.0))
