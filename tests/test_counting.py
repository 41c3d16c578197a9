"""Masks, tokens, groups, several inputs, layers: each compared with code written by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vat import VAT, Adversarial, ClassBalance, Entropy, PiModel, RandomPerturbation, local_distributional_smoothness
from vat.calls import Call
from vat.directions import DIRECTIONS
from vat.functional import Bernoulli, Categorical, Gaussian
from vat.norms import L2
from vat.regularizers import PublishedVAT
from vat.step import Key, Step

KEY = Key(5)
VOCABULARY, WIDTH, CLASSES = 20, 6, 3
LENGTHS = (5, 3, 4)


class Sentences(nn.Module):
    """Classifies sentences of ids by the mean of the unmasked tokens. Its output is an object, as that of Hugging Face's models."""

    def __init__(self, embed=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES)
        self.double()

    def tokens(self, x):
        return self.body(x).tanh()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        m = attention_mask[..., None].to(x)
        pooled = (self.tokens(x) * m).sum(1) / m.sum(1)
        return SimpleNamespace(logits=self.head(pooled))


class Tagger(Sentences):
    """Classifies each token: (N, T, C)."""

    def forward(self, x):
        return self.head(self.tokens(x))


def sentences(padded, left=False):
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.zeros(len(LENGTHS), padded, dtype=torch.long), torch.zeros(len(LENGTHS), padded, dtype=torch.long)
    for row, n in enumerate(LENGTHS):
        place = slice(padded - n, padded) if left else slice(n)
        ids[row, place] = torch.randint(1, VOCABULARY, (n,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def unit(r):
    return r / r.flatten(1).norm(dim=1).view(-1, *[1] * (r.dim() - 1))


# -------------------------------------------------------------------------------------------------------- r on a layer's output


def by_hand(model, embedded, mask, eps, number):
    """The default direction, written out on embeddings."""
    e = embedded.detach().requires_grad_()
    logits = model(inputs_embeds=e, attention_mask=mask).logits
    top = logits.argmax(1)
    towards = (top + 1 + (number * (CLASSES - 1)).long()) % CLASSES
    margin = logits.gather(1, towards[:, None])[:, 0] - logits.gather(1, top[:, None])[:, 0]
    (g,) = torch.autograd.grad(margin.sum(), e)
    perturbed = model(inputs_embeds=embedded + eps * unit(g * mask[..., None]), attention_mask=mask).logits
    p = logits.detach().log_softmax(1)
    return (p.exp() * (p - perturbed.log_softmax(1))).sum(1).mean()


@pytest.mark.parametrize("spelling", ["layer", "argument", "partial"])
def test_r_on_the_output_of_a_layer_is_that_of_code_written_by_hand(spelling):
    model = Sentences()
    ids, mask = sentences(7)
    batch = {"input_ids": ids, "attention_mask": mask}
    if spelling == "layer":
        step = Step(model, batch, at=model.embedding, mask=mask, key=KEY)
    elif spelling == "argument":
        step = Step(model, {"inputs_embeds": model.embedding(ids), "attention_mask": mask}, at="inputs_embeds", mask=mask, key=KEY)
    else:
        step = Step(model.forward, Call(None, mask, model.embedding(ids)), at=2, mask=mask, key=KEY)
    ours = VAT(0.7).penalty(step)
    wanted = by_hand(model, model.embedding(ids), mask, 0.7, step.uniform("class"))
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(loss, [*model.parameters()], retain_graph=True) for loss in (ours, wanted)]
    for g, by in zip(*gradients, strict=True):
        torch.testing.assert_close(g, by, rtol=1e-8, atol=1e-12)


def test_a_layer_that_is_not_called_once_is_refused():
    class Twice(Sentences):
        def forward(self, input_ids, attention_mask):
            return (self.embedding(input_ids) + self.embedding(input_ids)).mean(1)

    model = Twice()
    ids, mask = sentences(7)
    with pytest.raises(ValueError, match="at=Embedding must be called once in a pass, got 2 calls"):
        VAT(1.0)(model, (ids, mask), at=model.embedding)
    with pytest.raises(ValueError, match="at=Linear is not called in a pass"):
        VAT(1.0)(model, (ids, mask), at=model.body)
    with pytest.raises(KeyError, match="at='x' is not an argument of the call: choose one of"):
        VAT(1.0)(model, (ids, mask), at="x")
    with pytest.raises(TypeError, match=r"the argument 0 must be a tensor of a floating dtype, got torch.int64"):
        VAT(1.0)(model, (ids, mask))
    assert not model.embedding._forward_hooks


# --------------------------------------------------------------------------------------------------------------------- masks

REGULARIZERS = {
    **{name: lambda name=name: VAT(0.7, direction=name) for name in DIRECTIONS},
    "two iterations, sign": lambda: VAT(0.7, direction="exact", num_power_iterations=2, choose_sign=True),
    "linf": lambda: VAT(0.1, norm="linf", direction="finite_difference"),
    "per token": lambda: VAT(0.7, per="token", direction="finite_difference"),
    "control": lambda: RandomPerturbation(0.7),
    "adversarial": lambda: Adversarial(0.7),
    "entropy": Entropy,
    "balance": ClassBalance,
}


@pytest.mark.parametrize("tags", [False, True], ids=["sentences", "tags"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_same_sentences_padded_further_have_the_same_penalty(name, tags):
    model = Tagger() if tags else Sentences()
    values = []
    for padded, left in ((5, False), (12, False), (60, True)):
        ids, mask = sentences(padded, left)
        y = torch.where(mask > 0, ids % CLASSES, -100) if tags else torch.tensor([0, 2, 1])
        report = {}
        regularizer = REGULARIZERS[name]()
        options = {"key": KEY, "mask": mask, "report": report, "live": True}
        if tags:
            step = Step(model, model.embedding(ids).detach(), y, class_dim=-1, **options)
        else:
            step = Step(model, {"input_ids": ids, "attention_mask": mask}, y, at=model.embedding, **options)
        values.append([regularizer.penalty(step).item(), *(report[key].item() for key in sorted(report))])
        if isinstance(regularizer, VAT):
            r = regularizer.virtual_adversarial_perturbation(step)
            assert (r[mask == 0] == 0).all()
            assert (r[mask == 1] != 0).any()
    assert values[0][0] != 0
    torch.testing.assert_close(values[1:], [values[0]] * 2, rtol=1e-6, atol=1e-12)


def test_the_pi_models_mean_leaves_out_positions_that_do_not_count():
    torch.manual_seed(0)
    model, x, mask = nn.Conv1d(2, 3, 1), torch.randn(2, 2, 4), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    step = Step(model, x, mask=mask[:, None], class_dim=1, view=x + 1, live=True)
    squares = (model(x).softmax(1) - model(x + 1).softmax(1)).square().mean(1)
    torch.testing.assert_close(PiModel().penalty(step), ((squares[0, 0] + squares[0, 1]) / 2 + squares[1, 0]) / 2)


def test_a_random_r_has_its_full_length_on_what_counts():
    ids, mask = sentences(40)
    x = torch.randn(*ids.shape, WIDTH)
    r = RandomPerturbation(2.0).virtual_adversarial_perturbation(Step(lambda x: x[:, 0], x, module=(), mask=mask, key=KEY))
    torch.testing.assert_close(r[mask.bool()].square().sum(), torch.tensor(4.0 * len(LENGTHS)))


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
def test_void_pixels_do_not_count_in_norm_divergence_and_mean(name):
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1).double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    valid = torch.rand(4, 5, 5) < 0.6
    valid[3] = False  # an example in which nothing counts
    step = Step(model, x, mask=valid[:, None], key=KEY)
    vat = VAT(0.5, divergence=name, direction="finite_difference")
    r = vat.virtual_adversarial_perturbation(step)
    torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.tensor([0.5, 0.5, 0.5, 0.0], dtype=torch.float64))
    assert (r.movedim(1, -1)[~valid] == 0).all()
    clean, perturbed = model(x), model(x + r)
    by_example = []
    for row in range(3):  # each example with only its valid pixels
        a, b = (logits[row].movedim(0, -1)[valid[row]] for logits in (clean, perturbed))  # (pixels, C)
        of_pixels = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian()}[name](a, b)
        by_example.append(of_pixels.sum() if name == "gaussian" else of_pixels.mean())
    torch.testing.assert_close(vat.penalty(step), torch.stack(by_example).mean(), rtol=1e-8, atol=0)


def test_nan_logits_where_nothing_counts_do_not_matter():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return torch.where(mask[..., None], self.layer(x), torch.nan).movedim(-1, 1)

    mask = torch.tensor([[True, True, False], [True, False, False]])
    for direction in ("random_margin", "margin", "exact", "finite_difference", "ascent"):
        model = Padded()
        value = VAT(0.5, direction=direction)(model, torch.randn(2, 3, 4), mask=mask, class_dim=1)
        value.backward()
        assert value.isfinite()
        assert model.layer.weight.grad.isfinite().all()


def test_a_mask_that_fits_nothing_is_refused():
    x, model = torch.randn(2, 4, 6), nn.Linear(6, 3)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 6\) does not fit x of shape \(2, 4, 6\). It must have x's first dimensions"):
        Step(model, x, mask=torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"does not fit the positions of an output of shape \(2, 4, 3\).*Pass class_dim=-1"):
        VAT(1.0)(model, x, mask=torch.ones(2, 4), class_dim=1)
    with pytest.raises(ValueError, match="class_dim=3 is not a dimension of the output"):
        VAT(1.0)(model, x, class_dim=3)
    with pytest.raises(ValueError, match="PublishedVAT does not support a mask"):
        PublishedVAT(1.0)(model, x, mask=torch.ones(2, 4), class_dim=-1)


def test_the_outputs_may_have_their_own_mask():
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 3, stride=2).double()  # fewer positions than x
    x, counts = torch.randn(2, 2, 9, dtype=torch.float64), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    step = Step(model, x, output_mask=counts, class_dim=1, key=KEY, live=True)
    vat = VAT(0.5)
    perturbed = model(x + vat.virtual_adversarial_perturbation(step))
    wanted = torch.stack([Categorical()(model(x)[row : row + 1, :, :n], perturbed[row : row + 1, :, :n])[0] for row, n in ((0, 2), (1, 4))])
    torch.testing.assert_close(vat.penalty(step), wanted.mean())


# ------------------------------------------------------------------------------------------------------------ tokens, radii, groups


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_token_can_have_the_radius(direction):
    ids, mask = sentences(7)
    model = Tagger()
    step = Step(model, model.embedding(ids).detach(), mask=mask, class_dim=-1, key=KEY)
    r = VAT(0.3, per="token", direction=direction).virtual_adversarial_perturbation(step)
    torch.testing.assert_close(r.norm(dim=-1), 0.3 * mask.double())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_example_can_have_its_own_radius(direction, norm):
    torch.manual_seed(0)
    model, x, scale = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(4, 6).double(), torch.arange(4.0)
    vat = VAT(0.5, direction=direction, norm=norm)
    r = vat.virtual_adversarial_perturbation(Step(model, x, scale=scale, key=KEY))
    length = r.norm(dim=1) if norm == "l2" else r.abs().amax(1)
    torch.testing.assert_close(length, 0.5 * scale.double())
    whole = vat.virtual_adversarial_perturbation(Step(model, x, scale=2.0, key=KEY))
    torch.testing.assert_close(whole, VAT(1.0, direction=direction, norm=norm).virtual_adversarial_perturbation(Step(model, x, key=KEY)))


class Graphs(nn.Module):
    """Mean of the neighbours, then of each graph's nodes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x, adjacency, group):
        hidden = (adjacency @ self.first(x)).tanh()
        summed = torch.zeros(int(group.max()) + 1, 8, dtype=x.dtype).index_add(0, group, hidden)
        return self.second(summed / torch.bincount(group)[:, None])


@pytest.mark.parametrize("choose_sign", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_graphs_of_a_batch_have_each_the_r_that_they_have_alone(direction, choose_sign):
    model, sizes = Graphs(), (3, 5, 2)
    group = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))[torch.randperm(10)]
    x = torch.randn(10, 4, dtype=torch.float64)
    adjacency = (group[:, None] == group[None]).double() / 3
    step = Step(model, Call(x, adjacency, group), at=0, group=group, key=KEY, live=True)
    vat = VAT(0.5, direction=direction, choose_sign=choose_sign)
    r = vat.virtual_adversarial_perturbation(step)
    lengths = torch.zeros(3, dtype=torch.float64).index_add(0, group, r.square().sum(1)).sqrt()
    torch.testing.assert_close(lengths, torch.full((3,), 0.5, dtype=torch.float64))
    values = Categorical()(model(x, adjacency, group), model(x + r, adjacency, group))
    torch.testing.assert_close(vat.penalty(step), values.mean())
    if direction == "margin" and not choose_sign:
        for graph in range(3):
            mine = group == graph
            alone = Step(lambda x, mine=mine: model(x[0], adjacency[mine][:, mine], 0 * group[mine]), x[mine][None], module=model, key=KEY)
            torch.testing.assert_close(r[mine], vat.virtual_adversarial_perturbation(alone)[0])


# ------------------------------------------------------------------------------------------------------------- several inputs


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.table, self.head = nn.Conv2d(1, 2, 3), nn.Linear(5, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, image, table, bias=None):
        out = self.head((self.image(image).flatten(1) + self.table(table)).tanh())
        return out if bias is None else out + bias


def two_inputs():
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((4, 1, 4, 4), (4, 5)))


@pytest.mark.parametrize("how", ["tuple", "dict", "names"])
def test_several_inputs_have_one_joint_r(how):
    model, (image, table) = TwoInputs(), two_inputs()
    batch = {
        "tuple": (image, table),
        "dict": {"image": image, "table": table},
        "names": Call(image, table=table, bias=torch.ones(3)),
    }[how]
    step = Step(model, batch, at=[0, "table"] if how == "names" else None, key=KEY)
    ours = VAT(0.7, direction="margin").penalty(step)
    leaves = [t.clone().requires_grad_() for t in (image, table)]
    logits = model(*leaves)
    top = logits.topk(2, dim=1).values
    gradients = torch.autograd.grad((top[:, 1] - top[:, 0]).sum(), leaves)
    length = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()
    moved = [t + 0.7 * g / length.view(-1, *[1] * (g.dim() - 1)) for t, g in zip((image, table), gradients, strict=True)]
    torch.testing.assert_close(ours, Categorical()(logits.detach(), model(*moved)).mean())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_several_inputs_can_have_a_radius_each(direction):
    model, (image, table) = TwoInputs(), two_inputs()
    step = Step(model, (image, table), scale=[0.5, 2.0], key=KEY)
    r = VAT(1.0, per="input", direction=direction).virtual_adversarial_perturbation(step)
    torch.testing.assert_close(r[:, :16].norm(dim=1), torch.full((4,), 0.5).double())
    torch.testing.assert_close(r[:, 16:].norm(dim=1), torch.full((4,), 2.0).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "pixel"}, "per='pixel' is not known: choose one of example, token, input"),
        ({"per": "input"}, "per='input' needs several inputs"),
        ({"per": "token"}, r"per='token' needs inputs \(N, T, D\)"),
    ],
)
def test_a_norm_that_does_not_fit_the_inputs_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VAT(1.0, **options)(nn.Linear(5, 3), torch.randn(2, 5))


@pytest.mark.parametrize(("per", "given"), [("input", "mask"), ("input", "group"), ("token", "group")])
def test_a_mask_or_group_that_a_norm_would_ignore_is_refused(per, given):
    model, x = TwoInputs(), tuple(two_inputs()) if per == "input" else torch.randn(4, 3, 2)
    options = {"mask": torch.ones(4, 21) > 0} if given == "mask" else {"group": torch.tensor([0, 0, 1, 1])}
    with pytest.raises(ValueError, match=f"per='{per}' does not take a {given}"):
        Step(model, x, **options).norm(L2(), per)


def test_a_norm_per_input_of_a_single_input_is_that_of_the_example():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.randn(4, 3, 2)
    found = [VAT(1.0, per=per).penalty(Step(model, (x,), at=0, key=KEY)) for per in ("example", "input")]
    assert torch.equal(*found)


class InPlace(nn.Module):
    """Changes both of its inputs in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, weight):
        x -= 0.5
        weight *= 0.5
        return self.linear(x * weight)


@pytest.mark.parametrize("at", [0, None, "layer"])
def test_a_network_that_changes_its_inputs_in_place_gets_copies_of_them(at):
    torch.manual_seed(0)
    model = InPlace()
    x, weight = torch.randn(8, 4), torch.rand(8, 4) + 1
    before = x.clone(), weight.clone()
    place = model.linear if at == "layer" else at
    found = VAT(1.0).penalty(Step(model, (x, weight), at=place, key=KEY))
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])

    def other(x, weight):
        return model.linear((x - 0.5) * (weight * 0.5))

    torch.testing.assert_close(found, VAT(1.0).penalty(Step(other, (x, weight), module=model, at=place, key=KEY)))


@pytest.mark.parametrize("name", ["mask", 2])
def test_an_argument_that_a_call_lacks_is_named_with_those_it_has(name):
    with pytest.raises(KeyError, match=rf"{name!r} is not an argument of the call: choose one of \[0, 1, 'known'\]"):
        Call(torch.zeros(2), torch.ones(2), known=None)[name]


def test_several_inputs_may_have_different_dtypes_and_one_number_each():
    torch.manual_seed(0)

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.time = nn.Linear(4, 3), nn.Linear(1, 3).double()

        def forward(self, image, time):
            return self.image(image) + self.time(time[:, None]).float()

    model, image, time = Timed(), torch.randn(8, 4), torch.rand(8).double()
    step = Step(model, (image, time), key=KEY)
    r = VAT(0.5).virtual_adversarial_perturbation(step)
    torch.testing.assert_close(r.norm(dim=1), torch.full((8,), 0.5).double())
    moved = model(image + r[:, :4].float(), time + r[:, 4])
    torch.testing.assert_close(
        VAT(0.5).penalty(Step(model, (image, time), key=KEY)), Categorical()(model(image, time).detach(), moved).mean()
    )


@pytest.mark.parametrize("size", [(4, 5), (1, 5), (4, 1)])
@pytest.mark.parametrize("first", [1, 3])
def test_a_mask_of_pixels_may_be_that_of_all_images_and_of_one_line(size, first):
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 1).double(), torch.randn(3, 2, *size).double()
    mask = torch.rand(first, 1, *size, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[:, :, 0, 0] = True
    r = VAT(0.5).virtual_adversarial_perturbation(Step(model, x, mask=mask, key=KEY))
    assert not r[~mask.expand_as(x)].any()
    kl = nn.functional.kl_div(model(x + r).log_softmax(1), model(x).log_softmax(1), log_target=True, reduction="none").sum(1)
    counted = mask.expand(3, 1, *size)[:, 0]
    wanted = ((kl * counted).sum((1, 2)) / counted.sum((1, 2))).mean()
    torch.testing.assert_close(VAT(0.5).penalty(Step(model, x, mask=mask, key=KEY)), wanted)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (4, 0)])
@pytest.mark.parametrize("group", [False, True])
def test_inputs_without_a_number_have_the_penalty_0(shape, group):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape[1:]), 3))
    x = torch.randn(shape)
    options = {"group": torch.zeros(len(x), dtype=torch.int32)} if group else {}
    assert VAT(1.0)(model, x, **options) == 0


def test_examples_of_one_number_can_have_a_mask_and_groups_any_whole_numbers():
    model, x = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 3)), torch.randn(6)
    mask = torch.arange(6) < 4
    r = VAT(0.5).virtual_adversarial_perturbation(Step(model, x, mask=mask, key=KEY))
    torch.testing.assert_close(r.abs(), 0.5 * mask)
    groups = [torch.tensor([0, 0, 1, 1, 1, 2], dtype=kind) for kind in (torch.int32, torch.int64)]
    assert torch.equal(*(VAT(0.5).penalty(Step(model, x, group=group, key=KEY)) for group in groups))


def test_smoothness_is_measured_with_the_same_options():
    model = Sentences()
    found = []
    for padded in (6, 30):
        ids, mask = sentences(padded)
        batch = {"input_ids": ids, "attention_mask": mask}
        found.append(local_distributional_smoothness(model, batch, eps=0.5, at=model.embedding, mask=mask, key=KEY))
    torch.testing.assert_close(*found)
    assert (found[0] > 0).all()
