"""The examples in docstrings run and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vat
from vat import functional
from vat.evaluation.choosing import choose_eps
from vat.lightning import RegularizerCallback

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in (SOURCE / "vat").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
CENTRAL = [getattr(vat, name) for name in vat.__all__ if name != "Step"]
CENTRAL += [choose_eps, RegularizerCallback, functional.Categorical, functional.Bernoulli, functional.Gaussian]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_show(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {"torch": torch, "nn": nn, "F": F}
        failed, attempted = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert attempted
    assert not failed


@pytest.mark.parametrize("public", CENTRAL, ids=lambda public: public.__name__)
def test_a_central_name_has_an_example(public):
    assert ">>> " in public.__doc__
