"""The script that measures directions: its pieces, on a network small enough to wait for."""

import copy

import pytest
import running_scripts
import torch
from networks import rows
from torch import nn

fidelity = running_scripts.load("fidelity")


def networks():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    return {torch.float32: network, torch.float64: copy.deepcopy(network).double()}


@pytest.mark.parametrize("training", [False, True])
def test_draws_and_dropout_masks_are_the_same_in_every_precision(training):
    both = networks()
    for network in both.values():
        network.train(training)
    single, double = (fidelity.step_in(precision, both, rows(12, 20, dtype=torch.float32)) for precision in ("float32", "float64"))
    assert single.x.dtype == torch.float32
    assert double.x.dtype == torch.float64
    assert torch.equal(single.normal("direction").double(), double.normal("direction"))
    torch.testing.assert_close(single.clean.logits.double(), double.clean.logits, rtol=1e-4, atol=1e-5)  # another mask would change all


@pytest.mark.parametrize("name", list(fidelity.directions(1.0)))
def test_every_direction_of_the_table_gives_unit_directions_of_its_cost(name):
    both = networks()
    cost, make = fidelity.directions(float(rows(12, 20, dtype=torch.float32).norm(dim=1).mean()))[name]
    calls = []
    both[torch.float64].eval().register_forward_pre_hook(lambda *_: calls.append(1))
    vat = make(0.3)
    step = fidelity.step_in("float64", both, rows(12, 20, dtype=torch.float32))
    r = vat.virtual_adversarial_perturbation(step)
    torch.testing.assert_close(r.norm(dim=1), torch.full((12,), 0.3, dtype=torch.float64))
    assert len(calls) <= cost - 3  # the others are backward passes, and the three of the adversarial pass


def test_the_figure_has_a_panel_for_each_network_and_state_and_a_mark_for_each_value():
    shared = {"mode": "evaluation", "precision": "float32"}
    rows = [
        {"network": network, "state": state, "direction": direction, "eps": eps, "kl_share": 0.5, **shared}
        for network in ("mlp", "resnet")
        for state in fidelity.STATES
        for direction in ("margin", "random")
        for eps in fidelity.EPS
    ]
    drawn = fidelity.figure([*rows, {**rows[0], "mode": "training"}, {**rows[0], "precision": "bfloat16"}])
    assert len(drawn.axes) == 6
    assert all(len(panel.lines) == 4 for panel in drawn.axes)


def test_the_table_gives_the_mean_and_the_extremes_over_networks(tmp_path, capsys):
    shared = {"network": "mlp", "n": 8, "direction": "margin", "own_float64": 1.0, "rayleigh_share": 0.9, "cosine": 0.8}
    rows = [
        {**shared, "state": state, "mode": mode, "precision": "float32", "eps": eps, "kl_share": share}
        for state, share in (("supervised", 0.2), ("VAT", 0.6))
        for mode in ("evaluation", "training")
        for eps in fidelity.EPS
    ]
    fidelity.show(rows, tmp_path)
    assert "0.40 (0.20 – 0.60)" in (tmp_path / "table.md").read_text()
    assert "margin" in capsys.readouterr().out
