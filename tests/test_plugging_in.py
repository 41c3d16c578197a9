"""Every recipe of docs/plugging_in.md runs, and its penalty equals an independent computation with the same r."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from vat import VAT
from vat.calls import Call
from vat.lightning import RegularizerCallback

PAGE = (Path(__file__).parents[1] / "docs" / "plugging_in.md").read_text(encoding="utf-8")
RECIPES = PAGE.split("## Recipes", 1)[1]
FIRST, *PARTS = re.split(r"^### ", RECIPES, flags=re.MULTILINE)


@pytest.fixture
def run(monkeypatch):
    """Run a recipe and return its names, with the r of its VAT as `r`."""
    found = []
    perturbation = VAT.virtual_adversarial_perturbation
    monkeypatch.setattr(VAT, "virtual_adversarial_perturbation", lambda self, step: found.append(perturbation(self, step)) or found[-1])

    def run(title):
        (part,) = (part for part in PARTS if part.startswith(title))
        torch.manual_seed(0)
        names = {}
        for block in (blocks(FIRST)[0], *blocks(part)):
            exec(compile(block, title, "exec"), names)
        (names["r"],) = found
        return names

    return run


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def lengths(r):
    return r.flatten(1).norm(dim=1)


def kl_of_classes(clean, perturbed):
    """KL for each position of logits whose classes are last."""
    return kl_divergence(Categorical(logits=clean), Categorical(logits=perturbed))


def is_term(names, expected):
    """Assert that the penalty has the expected value, is not 0, and that r has length eps."""
    torch.testing.assert_close(lengths(names["r"]), torch.full((len(names["r"]),), names["vat"].eps))
    torch.testing.assert_close(names["smoothness"], expected, rtol=1e-3, atol=1e-6)
    assert names["smoothness"] > 1e-4


def test_ctc(run):
    names = run("CTC")
    known, r = names["known"], names["r"]
    assert (r[~known] == 0).all()
    x = names["frames"].transpose(0, 1)
    kl = kl_of_classes(names["acoustic"](x), names["acoustic"](x + r))  # one frame at a time
    is_term(names, torch.stack([row[mask].mean() for row, mask in zip(kl, known, strict=True)]).mean())


def test_segmentation(run):
    names = run("Segmentation")
    r, known = names["r"], names["labels"] != 255
    assert (r[:, 0][~known] == 0).all()
    kl = kl_of_classes(*(names["model"](x).movedim(1, -1) for x in (names["images"], names["images"] + r)))
    is_term(names, kl[known].mean())


def test_ordinal_classes(run):
    names = run("Ordinal")
    clean, perturbed = (Bernoulli(logits=names["model"](x)) for x in (names["x"], names["x"] + names["r"]))
    is_term(names, kl_divergence(clean, perturbed).sum(1).mean())


def test_quantiles(run):
    names = run("Quantiles")
    clean, perturbed = (Normal(names["model"](x), 2.0) for x in (names["x"], names["x"] + names["r"]))
    is_term(names, kl_divergence(clean, perturbed).sum(1).mean())


def test_a_mean_and_a_variance(run):
    names = run("A mean and a variance")
    outputs = (names["model"](x) for x in (names["x"], names["x"] + names["r"]))
    clean, perturbed = (Normal(output[:, 0], output[:, 1].exp().sqrt()) for output in outputs)
    is_term(names, kl_divergence(clean, perturbed).mean())


def test_adapters(run):
    names = run("Adapters")
    model, x = names["model"], names["x"]
    is_term(names, kl_of_classes(model(x), model(x + names["r"])).mean())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".layer." in name), name


def test_fabric(run):
    names = run("Fabric")
    model, x = names["model"].module, names["x"]
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    with names["fabric"].autocast():
        clean, perturbed = model(x).float(), model(x + names["r"]).float()
    is_term(names, kl_of_classes(clean, perturbed).mean())


def test_accelerate(run):
    pytest.importorskip("accelerate")
    names = run("Accelerate")
    model, x = names["model"], names["x"]
    is_term(names, kl_of_classes(model(x), model(x + names["r"])).mean())
    assert all(p.grad is not None for p in model.parameters())


def test_encoder_and_decoder(run):
    pytest.importorskip("transformers")
    names = run("Encoder and decoder")
    r, model, batch = names["r"], names["model"], names["batch"]
    assert (r[batch["attention_mask"] == 0] == 0).all()
    embeddings = model.shared(batch["input_ids"])
    others = {name: value for name, value in batch.items() if name != "input_ids"}
    kl = kl_of_classes(*(model(inputs_embeds=x, **others).logits for x in (embeddings, embeddings + r)))
    is_term(names, torch.stack([row[mask].mean() for row, mask in zip(kl, names["labels"] != -100, strict=True)]).mean())


def test_every_recipe_has_a_test():
    tested = re.findall(r'= run\("(.*?)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert all(sum(part.startswith(title) for title in tested) == 1 for part in PARTS)
    assert len(tested) == len(PARTS) > 8


class Words(nn.Module):
    """Logits (N, 3) of ids."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        return self.head((self.embeddings(input_ids).tanh() * attention_mask[..., None]).sum(1))


class Two(nn.Module):
    """Logits (N, 3) of an image and a table, or of nodes and edges."""

    def __init__(self):
        super().__init__()
        self.image, self.table = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, image, table):
        if not table.is_floating_point():  # edges
            return self.image(image) + self.image(image).index_select(0, table[0]).mean(0)
        return self.image(image) + self.table(table)


TOKENS = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
IDS = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
SHORT = {  # part of a short block's text -> the names that the block needs
    "vat = VAT(": {},
    "x_unlabelled": {"model": nn.Linear(6, 3), "x": torch.randn(2, 6), "y": torch.tensor([0, 2]), "x_unlabelled": torch.randn(4, 6)},
    "mask=known)": {"model": TOKENS, "x": torch.randn(2, 4, 6), "known": IDS > 0},
    "mask=known[:, None])": {"model": nn.Conv2d(1, 3, 3, padding=1), "images": torch.randn(2, 1, 4, 4), "known": torch.ones(2, 4, 4)},
    "get_input_embeddings()": {"model": Words(), "batch": {"input_ids": IDS, "attention_mask": (IDS > 0).long()}},
    "vat(model, (image, table))": {"model": Two(), "image": torch.randn(2, 6), "table": torch.randn(2, 2)},
    'per="input"': {"model": Two(), "image": torch.randn(2, 6), "table": torch.randn(2, 2)},
    "Call(": {"model": Two(), "x": torch.randn(4, 6), "edge_index": torch.tensor([[0, 1]]), "graph": torch.tensor([0, 0, 1, 1])},
    "callbacks=[RegularizerCallback(VAT(eps=2.0))]": {},
    "callbacks=[RegularizerCallback(VAT(eps=1.0)": {},
}
SHORT_BLOCKS = [block for block in blocks(PAGE.split("## Recipes")[0]) if "add_regularizers" not in block]  # that block needs a data set
LINES = [line for block in SHORT_BLOCKS for line in block.splitlines() if line and not line.startswith(("from ", "import "))]


@pytest.mark.parametrize("line", LINES)
def test_a_short_line_runs(line):
    (names,) = (names for part, names in SHORT.items() if part in line)
    names = {"F": F, "vat": VAT(1.0), "VAT": VAT, "Call": Call, "Trainer": Trainer, "RegularizerCallback": RegularizerCallback, **names}
    found = eval(re.sub(r"^\w+ = ", "", line), names)
    assert isinstance(found, Trainer | VAT) or found > 0
