"""The choice of a radius by unlabelled inputs, with networks whose predictions are known."""

import pytest
import torch

from vat.evaluation.choosing import MOST_KL, Pilot, choose, choose_eps, pilot

N, CLASSES = 200, 4
TRUTH = torch.arange(N) % CLASSES


def of(eps, kl, predictions=(TRUTH, TRUTH), spread=0.0):
    """A pilot with a given mean KL at a random r: half of the examples are above it and half below."""
    values = kl + spread * kl * (2.0 * (torch.arange(N) % 2) - 1)
    return Pilot(eps, torch.stack(list(predictions)), values.double(), CLASSES)


MERGED = TRUTH.where(TRUTH != 3, 2)


def test_disagreement_is_counted_over_pairs_of_networks():
    predictions = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 3, 0]])
    found = Pilot(1.0, predictions, torch.zeros(4), CLASSES)
    assert found.disagreement.tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3])


def test_the_rarest_class_is_counted_against_its_prior():
    predictions = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
    assert Pilot(1.0, predictions, torch.zeros(4), 2).smallest_share == pytest.approx(3 / 8 / 0.5)
    assert Pilot(1.0, predictions, torch.zeros(4), 2, torch.tensor([1.0, 3.0])).smallest_share == pytest.approx(3 / 8 / 0.75)
    assert Pilot(1.0, predictions, torch.zeros(4), 3).smallest_share == 0.0
    assert Pilot(1.0, predictions, torch.zeros(4), 3, torch.tensor([5, 5, 0])).smallest_share == pytest.approx(3 / 8 / 0.5)


def test_the_largest_radius_that_changes_nothing_at_random_is_chosen():
    found = choose([of(2.0, 0.02), of(0.0, 0.0), of(1.0, 0.002), of(0.5, 0.0004)])
    assert found.eps == 1.0
    assert [row["eps"] for row in found.rows()] == [0.0, 0.5, 1.0, 2.0]
    assert [row["allowed"] for row in found.rows()] == [1, 1, 1, 0]
    assert found.sure == 1.0


def test_a_radius_at_which_classes_merge_is_excluded():
    pilots = [of(0.0, 0.0), of(0.5, 0.0004), of(1.0, 0.001, (MERGED, MERGED))]
    assert choose(pilots).eps == 0.5
    assert choose([of(0.0, 0.0, (MERGED, MERGED)), *pilots[1:]]).eps == 1.0  # they have merged without VAT, too
    assert choose([of(0.0, 0.0), pilots[2]]).eps == 0.0


def test_if_every_radius_is_too_large_none_is_chosen():
    found = choose([of(0.0, 0.0), of(1.0, 0.1), of(2.0, 0.2)])
    assert (found.eps, found.sure) == (0.0, 1.0)


def test_a_choice_that_chance_decides_is_not_sure():
    radii = (0.25, 0.5, 1.0, 2.0, 4.0)
    near = [of(eps, MOST_KL * (1 + 0.001 * k), spread=0.9) for k, eps in enumerate(radii, start=-4)]
    assert choose([of(0.0, 0.0), *near]).sure < 0.9


def test_pilots_of_other_examples_are_refused():
    other = Pilot(1.0, torch.zeros(2, 7, dtype=torch.int64), torch.zeros(7), CLASSES)
    with pytest.raises(ValueError, match="of the same examples, got numbers of examples"):
        choose([of(0.0, 0.0), other])
    with pytest.raises(ValueError, match="of the same examples, got numbers of examples"):
        choose([])


class Shifted(torch.nn.Module):
    """Two classes on a line, divided by a threshold."""

    def __init__(self, threshold, slope=10.0):
        super().__init__()
        self.threshold, self.slope = threshold, slope

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), self.slope * (x[:, 0] - self.threshold)], 1)


def test_a_pilot_has_the_networks_predictions_and_kl():
    x = torch.linspace(-1, 1, 201)[:, None]
    found = pilot([Shifted(-0.1), Shifted(0.1)], x, eps=0.0, batch_size=50)
    assert found.num_classes == 2
    assert found.disagreement.sum() == pytest.approx(20, abs=1)  # between the thresholds, 0.01 apart
    assert found.kl_random.abs().max() == 0
    one = pilot([Shifted(0.0)], x, eps=0.5)
    # On a line a random r is +ε or -ε: the KL of Bernoulli predictions by hand, at both.
    p, plus, minus = ((10 * (x[:, 0] + r)).double().sigmoid() for r in (0.0, 0.5, -0.5))
    both = [p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log() for q in (plus, minus)]
    assert (torch.minimum(*both) - 1e-5 <= one.kl_random).all()
    assert (one.kl_random <= torch.maximum(*both) + 1e-5).all()
    with pytest.raises(ValueError, match="0 networks"):
        pilot([], x, eps=1.0)


def test_choosing_in_the_users_own_loop():
    asked = []

    def train(eps, seed):
        asked.append((eps, seed))
        return Shifted(0.0, slope=10.0)

    x = torch.linspace(-1, 1, 401)[:, None]
    found = choose_eps(train, x, candidates=[0.04, 0.01, 0.16, 0.02])
    rows = {row["eps"]: row["kl_random"] for row in found.rows()}
    assert found.eps == max(eps for eps, kl in rows.items() if kl <= MOST_KL)
    assert 0 < found.eps < 0.16
    assert asked == [(eps, seed) for eps in (0.0, 0.01, 0.02, 0.04, 0.16) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": []}, "radii > 0"),
        ({"candidates": [0.0, 1.0]}, "radii > 0"),
        ({"candidates": [1.0], "seeds": []}, "at least one seed"),
    ],
)
def test_invalid_candidates_and_seeds_are_refused_before_training(options, words):
    with pytest.raises(ValueError, match=words):
        choose_eps(lambda eps, seed: pytest.fail("trained"), torch.zeros(3, 1), **options)


def test_two_networks_that_each_predict_one_class_are_not_balanced():
    zeros = torch.zeros(40, dtype=torch.int64)
    assert Pilot(1.0, torch.stack([zeros, zeros + 1]), torch.zeros(40), 2).smallest_share == 0
    half = torch.arange(40) % 2
    assert Pilot(1.0, torch.stack([zeros, half]), torch.zeros(40), 2).smallest_share == 0.5
    merged = [Pilot(0.0, torch.stack([half, half]), torch.zeros(40), 2), Pilot(1.0, torch.stack([zeros, zeros + 1]), torch.zeros(40), 2)]
    assert choose(merged).eps == 0
