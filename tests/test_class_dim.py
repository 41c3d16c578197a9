"""The dimension of the classes: outputs of three dimensions need it, so that positions are never read as classes."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from networks import rows
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from vat import VAT, Adversarial, ClassBalance, Entropy, MeanTeacher, PiModel, RandomPerturbation, local_distributional_smoothness
from vat.evaluation.diagnosis import diagnose
from vat.regularizers import PublishedVAT
from vat.step import Key, Step

KEY = Key(5)
CLASSES, WIDTH = 4, 5
LENGTHS = [3, CLASSES, 6]


class ModelOutput(OrderedDict[str, Tensor]):
    """Like the class of transformers, which is recognised by its name."""


class Returns(nn.Module):
    """A network whose logits are in a container."""

    def __init__(self, network, wrap):
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, x):
        return self.wrap(self.network(x))


@dataclass
class Output:
    logits: Tensor


def tagger():
    """Tokens (N, T, D) -> (N, T, C)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def convolution():
    """A signal (N, D, L), or points (N, D, P), -> (N, C, L)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(WIDTH, 8, 1), nn.Tanh(), nn.Conv1d(8, CLASSES, 1)).double()


def known(mask):
    """The penalty's mean: over each example's positions that count, then over the examples."""
    return lambda kl: ((kl * mask).sum(1) / mask.sum(1)).mean()


def by_hand(model, x, r, dim, kind, mean):
    """The mean KL of torch's own distributions, with the classes moved to the end."""
    p, q = model(x).movedim(dim, -1).detach(), model(x + r).movedim(dim, -1)
    if kind == "categorical":
        return mean(kl_divergence(Categorical(logits=p), Categorical(logits=q)))
    return mean(kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).sum(-1))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("make", "dim"), [(tagger, -1), (tagger, 2), (convolution, 1)])
def test_a_penalty_and_its_gradient_use_the_classes_of_class_dim(make, dim, length, kind, masked):
    model = make()
    x = rows(2, length, WIDTH) if make is tagger else rows(2, WIDTH, length)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length // 2 :] = not masked
    of_inputs = mask if make is tagger else mask[:, None]
    options = {"class_dim": dim, "mask": of_inputs if masked else None}
    step = Step(model, x, key=KEY, **options)
    vat = VAT(0.7, divergence=kind)
    ours = vat.penalty(step)
    r = vat.virtual_adversarial_perturbation(Step(model, x, key=KEY, **options))
    wanted = by_hand(model, x, r, dim, kind, known(mask.double()))
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(loss, [*model.parameters()]) for loss in (ours, wanted)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


READERS = {
    "vat": lambda: VAT(0.7),
    "bernoulli": lambda: VAT(0.7, divergence="bernoulli", direction="finite_difference"),
    "through the target": lambda: VAT(0.7, gradient_through_target=True),
    "control": lambda: RandomPerturbation(0.7),
    "published": lambda: PublishedVAT(0.7),
    "adversarial": lambda: Adversarial(0.7),
    "entropy": Entropy,
    "balance": ClassBalance,
    "pi": PiModel,
    "teacher": MeanTeacher,
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", READERS)
def test_three_dimensions_without_class_dim_are_refused(name, length):
    model = tagger()
    regularizer = READERS[name]()
    regularizer.on_fit_start(model)
    for y in (torch.zeros(2, length, dtype=torch.long), torch.zeros(2, CLASSES, dtype=torch.long)):
        arguments = (y,) if regularizer.needs_labels else ()
        with pytest.raises(ValueError, match="are in dimension 1 or the last: pass class_dim=-1 if they are last"):
            regularizer(model, rows(2, length, WIDTH), *arguments)
    y = torch.zeros(2, length, dtype=torch.long)
    assert regularizer(model, rows(2, length, WIDTH), *([y] if regularizer.needs_labels else []), class_dim=-1).isfinite()


@pytest.mark.parametrize("wrap", [lambda z: {"logits": z}, lambda z: Output(z), lambda z: SimpleNamespace(logits=z)])
def test_a_users_own_container_needs_class_dim(wrap):
    x, mask = rows(2, 6, WIDTH), torch.ones(2, 6)
    for options in ({}, {"mask": mask}, {"output_mask": mask}):
        with pytest.raises(ValueError, match="pass class_dim=-1 if they are last"):
            VAT(0.7)(Returns(tagger(), wrap), x, **options)
    plain, contained = (VAT(0.7).penalty(Step(m, x, class_dim=-1, key=KEY)) for m in (tagger(), Returns(tagger(), wrap)))
    assert torch.equal(plain, contained)


@pytest.mark.parametrize("length", LENGTHS)
def test_tokens_of_hugging_faces_models_have_their_classes_last(length):
    x = rows(2, length, WIDTH)
    theirs = Returns(tagger(), lambda z: ModelOutput(loss=z.sum(), logits=z))
    plain, contained = (VAT(0.7).penalty(Step(m, x, class_dim=d, key=KEY)) for m, d in ((tagger(), -1), (theirs, None)))
    assert torch.equal(plain, contained)


def test_measures_refuse_what_the_term_refuses():
    x = rows(2, 6, WIDTH)
    for measure in (
        lambda **o: local_distributional_smoothness(tagger(), x, eps=0.7, **o),
        lambda **o: diagnose(tagger(), x, VAT(0.7), **o)["lds"],
    ):
        with pytest.raises(ValueError, match="pass class_dim=-1 if they are last"):
            measure()
        assert measure(class_dim=-1).shape == (2,)


@pytest.mark.parametrize("length", [3, WIDTH, 6])
def test_a_regression_needs_no_classes_unless_there_is_a_mask(length):
    torch.manual_seed(0)
    model, x = nn.Linear(WIDTH, WIDTH).double(), rows(2, length, WIDTH)
    vat, mask = VAT(0.7, divergence="gaussian"), torch.arange(length).expand(2, -1) < 2
    step = Step(model, x, key=KEY)
    r = vat.virtual_adversarial_perturbation(step)
    torch.testing.assert_close(vat.penalty(step), (model(x) - model(x + r)).square().sum((1, 2)).mean() / 2)
    with pytest.raises(ValueError, match="pass class_dim=-1 if they are last"):
        vat.penalty(Step(model, x, mask=mask, key=KEY))
    step = Step(model, x, mask=mask, class_dim=-1, key=KEY)
    r = vat.virtual_adversarial_perturbation(step)
    torch.testing.assert_close(vat.penalty(step), ((model(x) - model(x + r)).square() * mask[..., None]).sum((1, 2)).mean() / 2)


def pixels(classes_last):
    """Images (N, 3, H, W) -> (N, C, H, W), or (N, H, W, C)."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, CLASSES, 3, padding=1).double()
    return Returns(convolution, lambda z: z.movedim(1, -1)) if classes_last else convolution


@pytest.mark.parametrize(("size", "shrunk"), [((6, 6), 1), ((7, 6), 1), ((CLASSES, CLASSES), 1), ((12, 12), 2), ((2, 3), 1)])
@pytest.mark.parametrize("classes_last", [False, True])
def test_dense_maps_have_their_classes_in_dimension_1_and_doubtful_ones_give_a_warning(classes_last, size, shrunk):
    model = nn.Sequential(nn.AvgPool2d(shrunk), pixels(classes_last))
    x = rows(2, 3, *size)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        VAT(0.7)(model, x)
    told = any("pass class_dim=-1 if the classes are last" in str(w.message) for w in seen)
    assert told == (classes_last and size != (CLASSES, CLASSES))  # as many pixels as classes: the two readings cannot be told apart
    dim = -1 if classes_last else 1
    options = {"class_dim": -1 if classes_last else None, "key": KEY}
    r = VAT(0.7).virtual_adversarial_perturbation(Step(model, x, **options))
    wanted = by_hand(model, x, r, dim, "categorical", torch.mean)
    torch.testing.assert_close(VAT(0.7).penalty(Step(model, x, **options)), wanted, rtol=1e-9, atol=0)


# ----------------------------------------------------------------------------------------------------- masks of outputs


@pytest.mark.parametrize("length", LENGTHS)
def test_a_mask_of_output_entries_has_the_shape_of_the_networks_output(length):
    model, x = tagger(), rows(2, length, WIDTH)
    entries = torch.rand(2, length, CLASSES, generator=torch.Generator().manual_seed(0)) < 0.6
    vat = VAT(0.7, divergence="bernoulli")
    options = {"output_mask": entries, "class_dim": -1, "key": KEY}
    r = vat.virtual_adversarial_perturbation(Step(model, x, **options))
    p, q = model(x).detach(), model(x + r)
    kl = (kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)) * entries).sum(-1)
    wanted = (kl.sum(1) / entries.any(-1).sum(1)).mean()
    torch.testing.assert_close(vat.penalty(Step(model, x, **options)), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["mask", "output_mask"])
def test_a_mask_of_other_numbers_is_refused(name):
    model, x = tagger(), rows(2, 6, WIDTH)
    added = torch.zeros(2, 6).masked_fill(torch.arange(6) > 3, -torch.inf)
    for mask in (added, torch.full((2, 6), 0.5)):
        with pytest.raises(ValueError, match=r"a mask must be 1 where something counts and 0 elsewhere, got other numbers.*pass mask == 0"):
            VAT(0.7)(model, x, class_dim=-1, **{name: mask})
    values = [VAT(0.7).penalty(Step(model, x, class_dim=-1, key=KEY, **{name: mask})) for mask in (added == 0, (added == 0).double())]
    assert torch.equal(*values)


@pytest.mark.parametrize("divergence", ["bernoulli", "gaussian"])
def test_outputs_to_which_a_mask_of_positions_does_not_apply_give_a_warning(divergence):
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, 1).double()
    model = Returns(layer, lambda z: z.squeeze(-1))
    x, mask = rows(2, 6, WIDTH), torch.arange(6).expand(2, -1) < 4
    vat = VAT(0.7, divergence=divergence, direction="finite_difference")
    with pytest.warns(UserWarning, match=r"outputs of shape \(2, 6\) are read as 6 outputs of each example.*pass output_mask, too"):
        vat(model, x, mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vat(Returns(layer, lambda z: z.squeeze(-1)), x, mask=mask, output_mask=mask)
    step = Step(model, x, mask=mask, output_mask=mask, key=KEY)
    r = vat.virtual_adversarial_perturbation(step)
    p, q = model(x).detach(), model(x + r)
    kl = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)) if divergence == "bernoulli" else (p - q).square() / 2
    torch.testing.assert_close(vat.penalty(step), (kl * mask).sum(1).mean(), rtol=1e-9, atol=0)


def test_a_mask_shaped_like_the_inputs_says_nothing_about_pixels_and_is_refused():
    x, mask = rows(2, 3, 4, 4), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    with pytest.raises(ValueError, match=r"does not fit the positions of an output .*the mask of the outputs as output_mask=…"):
        VAT(0.7)(pixels(classes_last=False), x, mask=mask)
    step = Step(pixels(classes_last=False), x, mask=mask, output_mask=mask.any(1), key=KEY)
    assert VAT(0.7).penalty(step) > 0
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).double()
    assert not VAT(0.7).virtual_adversarial_perturbation(Step(whole, x, mask=mask, key=KEY))[~mask].any()


def test_a_mask_of_a_signal_without_features_that_does_not_reach_its_outputs_gives_a_warning():
    x, mask = rows(2, 6), torch.arange(6).expand(2, -1) < 4
    vat = VAT(0.7, divergence="bernoulli")
    with pytest.warns(UserWarning, match=r"outputs of shape \(2, 6\) are read as 6 outputs of each example.*pass output_mask, too"):
        vat(nn.Linear(6, 6).double(), x, mask=mask)


def mlp(outputs=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, outputs)).double()


@pytest.mark.parametrize("direction", ["margin", "random_margin", "exact", "finite_difference", "ascent", "random"])
def test_labels_that_do_not_apply_do_not_direct_r(direction):
    """The perturbation is that of a network which has only the other outputs."""
    model, x = mlp(), rows(8, WIDTH)
    applies = torch.tensor([False, True, False, True, True])
    vat = VAT(0.7, direction=direction, divergence="bernoulli", xi=1e-4 if direction == "finite_difference" else None)

    def steps():
        yield Step(model, x, output_mask=applies.expand(8, -1), key=KEY)
        yield Step(lambda x: model(x)[:, applies], x, module=model, key=KEY)

    torch.testing.assert_close(*map(vat.virtual_adversarial_perturbation, steps()), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(*map(vat.penalty, steps()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("direction", ["margin", "random_margin"])
def test_each_example_has_its_own_labels_that_apply(direction):
    model, x = mlp(), rows(8, WIDTH)
    applies = torch.rand(8, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    applies[3], applies[4] = False, True
    vat = VAT(0.7, direction=direction, divergence="bernoulli")
    found = vat.virtual_adversarial_perturbation(Step(model, x, output_mask=applies, key=KEY))
    for row in (row for row in range(8) if row != 3):
        alone = Step(lambda x, row=row: model(x)[:, applies[row]], x, module=model, key=KEY)  # the whole batch, so the same random class
        torch.testing.assert_close(found[row], vat.virtual_adversarial_perturbation(alone)[row])
    assert found.isfinite().all()


def test_a_mask_of_single_classes_of_a_softmax_is_refused():
    model, x = mlp(), rows(8, WIDTH)
    some = torch.arange(5).expand(8, -1) < 3
    for term in (VAT(0.7), Entropy(), ClassBalance(), PiModel()):
        with pytest.raises(ValueError, match=r"single classes of a softmax.*Select the others"):
            term(model, x, output_mask=some)
        assert term(model, x, output_mask=torch.ones(8, 5)) >= 0
    hidden = Step(lambda x: model(x).masked_fill(~some[: len(x)], -torch.inf), x, module=model, key=KEY)
    chosen = Step(lambda x: model(x)[:, :3], x, module=model, key=KEY)
    torch.testing.assert_close(*(VAT(0.7, direction="margin").penalty(step) for step in (hidden, chosen)))


def test_adversarial_training_counts_only_where_the_mask_is_1():
    torch.manual_seed(0)
    model, x, y = nn.Linear(WIDTH, CLASSES).double(), rows(6, 7, WIDTH), torch.arange(42).view(6, 7) % CLASSES
    mask = torch.arange(7).expand(6, -1) < torch.tensor([[7], [4], [1], [5], [2], [3]])
    found = Adversarial(0.0)(model, x, y, mask=mask, class_dim=-1)
    torch.testing.assert_close(found, nn.functional.cross_entropy(model(x)[mask], y[mask]))
    marked = y.where(mask, -100)
    keyed = [Adversarial(0.5).penalty(Step(model, x, labels, mask=mask, class_dim=-1, key=KEY)) for labels in (y, marked)]
    assert torch.equal(*keyed)
    pooled = Returns(model, lambda z: z.mean(1))
    nothing = mask.clone()
    nothing[2:4] = False
    found = Adversarial(0.0)(pooled, x, y[:, 0], mask=nothing)
    torch.testing.assert_close(found, nn.functional.cross_entropy(pooled(x)[[0, 1, 4, 5]], y[[0, 1, 4, 5], 0]))
