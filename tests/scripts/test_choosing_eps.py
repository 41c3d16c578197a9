"""The study of rules for the radius: its networks train as they would alone, and its tables are means of differences."""

import pytest
import torch
from running_scripts import load

from vat import ClassBalance
from vat.functional import DIVERGENCES
from vat.step import Step

study = load("choosing_eps")


def split_weights(module, many, k):
    """The weights of one of several networks."""
    return {name: p.detach().view(many, -1)[k] for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_networks_side_by_side_train_as_each_alone(kind):
    shape = (6,) if kind == "mlp" else (3, 4, 4)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, *shape, generator=g), torch.arange(40) % 2
    labeled, pool = torch.arange(10), torch.arange(40)

    def made(many):
        return study.MLPs(many, shape, 2, hidden=(5,)) if kind == "mlp" else study.CNNs(many, shape, 2, 0.1, 1.2, channels=(2, 3))

    def trained(network, balance):
        many = network.many
        study.fit(
            network, x, y, labeled, pool, steps=3, g=torch.Generator().manual_seed(1), eps=torch.zeros(many),
            eps_random=torch.zeros(many), balance=balance, log_prior=torch.tensor([0.5, 0.5]).log(),
        )  # fmt: skip

    torch.manual_seed(0)
    together, alone = made(3), made(1)
    for name, p in alone.named_parameters():
        p.data.copy_(together.get_parameter(name).data.view(3, -1)[1].view_as(p))
    trained(together, torch.tensor([0.0, 1.0, 1.0]))
    trained(alone, torch.tensor([1.0]))
    for name, p in split_weights(alone, 1, 0).items():
        torch.testing.assert_close(split_weights(together, 3, 1)[name], p, rtol=1e-4, atol=1e-6)


def test_a_radius_for_each_network_is_its_own():
    torch.manual_seed(0)
    network, x = study.MLPs(3, (6,), 2, hidden=(5,)).eval(), torch.randn(7, 6)
    vat = study.VAT(1.0)
    vat.eps = study.of_each(torch.tensor([0.0, 0.5, 2.0]), 7, x)
    step = Step(network, study.repeated(x, 3), live=True)
    r = vat.virtual_adversarial_perturbation(step)
    lengths = r.view(3, 7, 6).norm(dim=2)
    torch.testing.assert_close(lengths, torch.tensor([0.0, 0.5, 2.0])[:, None].expand(3, 7), rtol=1e-5, atol=1e-6)
    kl = DIVERGENCES["categorical"](step.target, network(step.x + r)).view(3, 7).mean(1)
    torch.testing.assert_close(vat.penalty(step), kl.mean(), rtol=1e-5, atol=1e-7)


def test_class_balance_is_that_of_the_package():
    logits = torch.randn(2, 8, 3)
    prior = torch.tensor([0.2, 0.3, 0.5])
    log_p = logits.log_softmax(2).logsumexp(1) - torch.tensor(8.0).log()
    found = (log_p.exp() * (log_p - prior.log())).sum(1)
    for k in range(2):
        expected = ClassBalance(prior=prior.tolist())(lambda x, k=k: logits[k] + 0 * x.sum(), torch.zeros(8, 1), module=())
        torch.testing.assert_close(found[k], expected)


def rows(*settings):
    """Rows of radius 0, 1, 2, 4 …: KL, disagreement, share, validation and test error."""
    keys = ("kl_random", "disagreement", "smallest_share", "val_error", "test_error")
    return [
        {
            "method": "vat" if k else "none",
            "factor": 2.0**k if k else 0.0,
            **dict(zip(keys, s, strict=True)),
            "distance": 1.0,
            "flip_rate": 0.0,
        }
        for k, s in enumerate(settings)
    ]


RECORD = {"set": "digits", "split": 0, "unit": 0.5, "nearest_of_group": 5.0, "classes_touch": False, "labels": 50, "validation": 10}
FULL = RECORD | {
    "length": "full",
    "rows": rows((0.0, 0.10, 0.9, 0.2, 0.15), (0.001, 0.09, 0.9, 0.2, 0.10), (0.002, 0.08, 0.8, 0.3, 0.08), (0.02, 0.02, 0.3, 0.1, 0.12)),
}


def test_rules_take_what_they_say():
    of = study.rows_of(FULL, "vat")
    assert [row["eps"] for row in of] == [0.0, 1.0, 2.0, 4.0]
    rules = study.RULES
    assert rules["largest ε with KL at a random r ≤ 0.003"](of) == 2
    assert rules["largest ε with KL at a random r ≤ 0.03"](of) == 3
    assert study.largest("kl_random", 1e-9)(of) == 1
    assert rules["least disagreement"](of) == 3
    assert study.least("disagreement", most_kl=0.003)(of) == 2
    assert rules["least validation error"](of) == 3
    assert rules["0.3 × distance to the nearest of 16 (default)"](of) == 2  # 1.5 is nearer to 2 than to 1, in octaves
    assert study.unless_merged(study.largest("kl_random", 0.03))(of) == 0
    assert study.unless_more(study.largest("kl_random", 0.003))(of) == 2


def test_regret_is_the_difference_to_the_best_radius_of_the_full_run():
    short = RECORD | {
        "length": "quarter",
        "rows": rows((0.0, 0.1, 0.9, 0.2, 0.5), (0.01, 0.1, 0.9, 0.2, 0.4), (0.02, 0.1, 0.9, 0.2, 0.1), (0.03, 0.1, 0.9, 0.2, 0.1)),
    }
    found = study.regrets([FULL, short], "vat", "quarter")
    assert found["none"]["digits"] == [pytest.approx(7.0)]
    assert found["largest ε with KL at a random r ≤ 0.003"]["digits"] == [pytest.approx(2.0)]
    assert study.regrets([FULL], "vat", "full")["largest ε with KL at a random r ≤ 0.003"]["digits"] == [pytest.approx(0.0)]
    text = study.table(found)
    assert "| none | 7.00 | 7.00 | – |" in text
    assert "| splits | 1 | | |" in text


def test_sentences_are_counted_where_they_are_said():
    record = FULL | {"rows": [row | {"lds": 0.5, "kl_ascent": 0.6, "kl_random": 30 * row["kl_random"]} for row in FULL["rows"]]}
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in study.alarms([record]).splitlines()}
    # Errors 10, 8 and 12 %, the best 8 %; KL 0.03, 0.06 and 0.6; shares 0.9, 0.8 and 0.3 of 0.9.
    assert lines["eps reaches into other classes"] == ["1", "4.0", "0", "2", "1.0", "0"]
    assert lines["a class has less than half of its share without VAT"] == ["1", "4.0", "0", "2", "1.0", "0"]
    assert lines["a class is almost never predicted"] == ["0", "–", "0", "3", "2.0", "0"]


def test_a_split_is_trained_and_judged():
    torch.manual_seed(0)
    record = study.train("wine", 0, 2, None)
    assert len(record["rows"]) == 1 + len(study.VAT_FACTORS) + len(study.RECIPE_FACTORS) + 2  # two at the default radius
    assert record["rows"][0]["kl_random"] == 0
    assert all(0 <= row["test_error"] <= 1 and row["distance"] > 0 for row in record["rows"])
