"""Radii are chosen by what networks say of unlabelled inputs: counted by hand here, with networks whose answers are known."""

import pytest
import torch

from vat.evaluation.choosing import Choice, Pilot, best, choose, choose_eps, pilot

N, CLASSES = 200, 4
TRUTH = torch.arange(N) % CLASSES


def answers(wrong, seed, into=None):
    """Predictions that are wrong for so many examples, chosen by the seed."""
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:wrong]
    found = TRUTH.clone()
    found[rows] = (found[rows] + 1) % CLASSES if into is None else into
    return found


def of(eps, wrong, kl=0.001, into=None):
    predictions = torch.stack([answers(wrong, seed, into) for seed in (1, 2)])
    return Pilot(eps, predictions, torch.full((N,), kl, dtype=torch.float64), CLASSES)


def test_disagreement_is_counted_over_pairs_of_networks():
    predictions = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 3, 0]])
    found = Pilot(1.0, predictions, torch.zeros(4), CLASSES)
    assert found.disagreement.tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3])


def test_the_rarest_class_is_counted_against_its_prior():
    predictions = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
    assert Pilot(1.0, predictions, torch.zeros(4), 2).smallest_share() == pytest.approx(3 / 8 / 0.5)
    assert Pilot(1.0, predictions, torch.zeros(4), 2, torch.tensor([1.0, 3.0])).smallest_share() == pytest.approx(3 / 8 / 0.75)
    assert Pilot(1.0, predictions, torch.zeros(4), 3).smallest_share() == 0.0
    assert Pilot(1.0, predictions, torch.zeros(4), 3, torch.tensor([5, 5, 0])).smallest_share() == pytest.approx(3 / 8 / 0.5)


def test_the_radius_whose_networks_agree_is_chosen():
    found = choose([of(2.0, 30), of(0.0, 60), of(1.0, 10), of(0.5, 40)])
    assert found.eps == 1.0
    assert [row["eps"] for row in found.rows()] == [0.0, 0.5, 1.0, 2.0]
    assert found.sure > 0.9
    assert found.without == 0.0


def test_no_vat_is_chosen_if_its_networks_agree_more():
    found = choose([of(0.0, 10), of(1.0, 40), of(2.0, 50)])
    assert found.eps == 0.0
    assert found.without == 1.0


def test_networks_that_agree_on_leaving_a_class_out_are_not_trusted():
    merged = TRUTH.clone()
    merged[merged == 3] = 2
    agreed = Pilot(1.0, torch.stack([merged, merged]), torch.zeros(N), CLASSES)
    assert best([of(0.0, 40), of(0.5, 20), agreed]) == 0.5
    assert best([of(0.0, 40), agreed]) == 0.0


def test_a_choice_that_chance_decides_is_not_sure():
    assert choose([of(0.0, 20), of(1.0, 20), of(2.0, 20), of(4.0, 20), of(8.0, 21)]).sure < 0.95


def test_pilots_of_other_examples_are_refused():
    other = Pilot(1.0, torch.zeros(2, 7, dtype=torch.int64), torch.zeros(7), CLASSES)
    with pytest.raises(ValueError, match="pilots of the same examples"):
        choose([of(0.0, 10), other])


class Shifted(torch.nn.Module):
    """Two classes on a line, told apart at a threshold."""

    def __init__(self, threshold, slope=10.0):
        super().__init__()
        self.threshold, self.slope = threshold, slope

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), self.slope * (x[:, 0] - self.threshold)], 1)


def test_networks_are_asked_about_the_inputs():
    x = torch.linspace(-1, 1, 201)[:, None]
    found = pilot([Shifted(-0.1), Shifted(0.1)], x, eps=0.0, batch_size=50)
    assert found.num_classes == 2
    assert found.disagreement.sum() == pytest.approx(20, abs=1)  # between the thresholds, 0.01 apart
    assert found.kl_random.abs().max() == 0
    assert pilot([Shifted(-0.1), Shifted(0.1)], x, eps=0.5).kl_random.mean() > 0.1
    with pytest.raises(ValueError, match="train two for each eps"):
        pilot([Shifted(0.0)], x, eps=1.0)


def test_choosing_in_a_loop_of_ones_own():
    asked = []

    def train(eps, seed):
        asked.append((eps, seed))
        return Shifted((seed - 0.5) * (0.4 if eps == 0 else abs(eps - 0.02) * 5))

    x = torch.linspace(-1, 1, 401)[:, None]
    found = choose_eps(train, x, candidates=[0.04, 0.01, 0.02])
    assert isinstance(found, Choice)
    assert found.eps == 0.02
    assert asked == [(eps, seed) for eps in (0.0, 0.01, 0.02, 0.04) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": []}, "radii > 0"),
        ({"candidates": [0.0, 1.0]}, "radii > 0"),
        ({"candidates": [1.0], "seeds": [3, 3]}, "two different"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(options, words):
    with pytest.raises(ValueError, match=words):
        choose_eps(lambda eps, seed: pytest.fail("trained"), torch.zeros(3, 1), **options)
