"""Diagnostics of masked, grouped and other calls equal those of each example alone, without padding."""

import pytest
import torch
from test_counting import CLASSES, KEY, Graphs, Sentences, Tagger, TwoInputs, sentences, two_inputs
from torch import nn
from torch.autograd.functional import hessian

from vat import VAT
from vat.calls import Call
from vat.directions import DIRECTIONS
from vat.evaluation.choosing import choose_eps, pilot
from vat.evaluation.diagnosis import diagnose, root_of_hessian
from vat.functional import Categorical
from vat.step import Step

LENGTHS = (5, 3, 4)


def alone(row, tags):
    """A sentence without padding, and the position of its random numbers."""
    ids, mask = (tensor[row : row + 1, : LENGTHS[row]] for tensor in sentences(5))
    batch = (ids,) if tags else {"input_ids": ids, "attention_mask": mask}
    return batch, {"mask": mask, "start": row, "total": 3}


OPTIONS = [*({"direction": name} for name in DIRECTIONS), {"per": "token"}, {"norm": "linf", "direction": "margin"}]


# A direction does not depend on the shape of the logits, so two options are enough for tags.
@pytest.mark.parametrize(("options", "tags"), [*((o, False) for o in OPTIONS), *((o, True) for o in (OPTIONS[0], OPTIONS[-2]))], ids=str)
def test_padding_does_not_change_the_diagnosis(options, tags):
    model = Ids() if tags else Sentences()
    ids, mask = sentences(11)
    batch = (ids,) if tags else {"input_ids": ids, "attention_mask": mask}
    of_step = {"at": model.embedding, "key": KEY, **({"class_dim": -1} if tags else {})}
    vat = VAT(0.4, **options)
    found = diagnose(model, batch, vat, mask=mask, **of_step)
    singly = [diagnose(model, one, vat, **of_step, **more) for one, more in (alone(row, tags) for row in range(3))]
    assert found.keys() == singly[0].keys()
    assert ("eigenvalue" in found) == (not {"per", "norm"} & options.keys())
    # The probe of a finite difference has one length for the complete batch.
    tolerance = 1e-3 if options.get("direction") == "finite_difference" else 1e-6
    for name, value in found.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one in singly]), rtol=tolerance, atol=1e-9, msg=name)
    assert (found["lds"] <= found["kl_maximum"] * (1 + 1e-9)).all()


class Ids(Tagger):
    """A tagger of ids."""

    def forward(self, ids):
        return self.head(self.tokens(self.embedding(ids)))


def test_the_hessian_of_a_masked_divergence_is_that_of_what_counts():
    model = Tagger()
    torch.manual_seed(0)
    x, mask = torch.randn(1, 4, 6, dtype=torch.float64), torch.tensor([[1, 0, 1, 1]])
    step = Step(model, x, mask=mask, class_dim=-1, key=KEY, live=True)
    root = root_of_hessian(step, step.divergence(Categorical()))[0]
    some = x[:, mask[0].bool()]
    clean = model(some).detach()
    dense = hessian(lambda r: Categorical()(clean.movedim(-1, 1), model(some + r).movedim(-1, 1)).sum(), torch.zeros_like(some))
    mine = (root.mT @ root).view(4, 6, 4, 6)[mask[0].bool()][:, :, mask[0].bool()]
    torch.testing.assert_close(mine.reshape(18, 18), dense.reshape(18, 18), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("direction", ["margin", "finite_difference"])
def test_graphs_of_a_batch_are_diagnosed_as_each_alone(direction):
    model, sizes = Graphs(), (3, 5, 2)
    torch.manual_seed(0)
    group = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    x = torch.randn(10, 4, dtype=torch.float64)
    adjacency = (group[:, None] == group[None]).double() / 3
    vat = VAT(0.5, direction=direction, num_power_iterations=100 if direction == "finite_difference" else None)
    found = diagnose(model, Call(x, adjacency, group), vat, at=0, group=group, key=KEY)
    assert "eigenvalue" not in found
    assert all(value.shape == (3,) for value in found.values())
    for graph in range(3):
        mine = group == graph

        def function(x, mine=mine):
            return model(x[0], adjacency[mine][:, mine], 0 * group[mine])

        single = diagnose(function, x[mine][None], vat, module=model, key=KEY)
        for name, tolerance in (("margin", 1e-9), ("kl_maximum", 1e-3), *([("lds", 1e-9)] if direction == "margin" else [])):
            torch.testing.assert_close(found[name][graph], single[name][0], rtol=tolerance, atol=1e-12)


def test_several_inputs_and_radii_are_diagnosed():
    model, batch = TwoInputs(), tuple(two_inputs())
    vat = VAT(1.0, per="input", direction="margin")
    found = diagnose(model, batch, vat, scale=[0.5, 2.0], key=KEY)
    step = Step(model, batch, scale=[0.5, 2.0], key=KEY)
    r = vat.virtual_adversarial_perturbation(step)
    moved = [batch[0] + r[:, :16].view_as(batch[0]), batch[1] + r[:, 16:]]
    torch.testing.assert_close(found["lds"], Categorical()(model(*batch), model(*moved)))
    assert (found["kl_maximum"] >= found["lds"] * (1 - 1e-9)).all()
    none = diagnose(model, batch, vat, scale=[0.0, 2.0], key=KEY)
    assert all(value.isfinite().all() for value in none.values())


def test_a_network_of_many_outputs_has_no_hessian_but_the_rest():
    model = nn.Conv1d(2, 3, 1).double()
    found = diagnose(model, torch.randn(2, 2, 400).double(), VAT(0.5), class_dim=1)
    assert not {"eigenvalue", "curvature", "cosine"} & found.keys()
    assert {"lds", "kl_maximum", "flip_rate"} <= found.keys()


# ---------------------------------------------------------------------------------------------------------- choosing a radius


@pytest.mark.parametrize("tags", [False, True], ids=["sentences", "tags"])
def test_padding_does_not_change_a_pilot(tags):
    model = Ids() if tags else Sentences()
    found = []
    for padded, left, size in ((5, False, 500), (12, False, 500), (60, True, 500), (12, False, 3)):
        ids, mask = sentences(padded, left)
        batch = (ids,) if tags else {"input_ids": ids, "attention_mask": mask}
        found.append(pilot([model], batch, eps=0.4, at="embedding", mask=mask, batch_size=size, **({"class_dim": -1} if tags else {})))
    for other in found[1:]:
        torch.testing.assert_close(other.kl_random, found[0].kl_random)
        assert torch.equal(other.predictions, found[0].predictions)
    assert found[0].predictions.shape == (1, sum(LENGTHS) if tags else 3)
    assert found[0].num_classes == CLASSES
    # compared with a mean of many draws by hand, for one sentence
    ids, mask = sentences(5)
    e = model.embedding(ids[1:2, :3]).detach().expand(2000, -1, -1)
    r = torch.randn(e.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = 0.4 * r / r.flatten(1).norm(dim=1)[:, None, None]
    p, q = ((model.head(model.tokens(z) if tags else model.tokens(z).mean(1))).log_softmax(-1) for z in (e, e + r))
    kl = (p.exp() * (p - q)).sum(-1)
    kl = kl.mean(1) if tags else kl
    ratio = found[0].kl_random[1] / kl.mean()
    assert kl.min() / kl.mean() < ratio < kl.max() / kl.mean()


def test_a_radius_is_chosen_for_the_call_of_the_term():
    ids, mask = sentences(9)
    batch = {"input_ids": ids, "attention_mask": mask}
    asked = []

    def train(eps, seed):
        asked.append(eps)
        return Sentences().eval()

    choice = choose_eps(train, batch, candidates=[0.01, 0.1, 10.0], at="embedding", mask=mask)
    kl = {row["eps"]: row["kl_random"] for row in choice.rows()}
    assert choice.eps == max(eps for eps, value in kl.items() if value <= 0.003)
    assert asked == [0.0, 0.0, 0.01, 0.01, 0.1, 0.1, 10.0, 10.0]
    with pytest.raises(ValueError, match="pass class_dim=-1 if they are last"):
        choose_eps(lambda eps, seed: Ids(), (ids,), candidates=[0.1], at="embedding", mask=mask)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_random_r_of_a_pilot_has_the_terms_norm(norm):
    x = torch.randn(5, 7)
    model = Recorder()
    pilot([model], x, eps=0.5, norm=norm)
    r = model.seen[-1] - x
    length = r.norm(dim=1) if norm == "l2" else r.abs().amax(1)
    torch.testing.assert_close(length, torch.full((5,), 0.5))


class Recorder(nn.Module):
    """Keeps its inputs outside of the module's state."""

    def __init__(self):
        super().__init__()
        self.seen = Seen()

    def forward(self, x):
        self.seen.append(x)
        return x[:, :3]


class Seen(list):
    """A user's class, whose state no pass restores."""
