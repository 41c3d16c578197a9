"""The dashboard's specification, offline."""

import json
import sys
from pathlib import Path

import pytest
import running_scripts

pytest.importorskip("wandb_workspaces")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dashboard():
    return running_scripts.load("dashboard")


@pytest.fixture(scope="module")
def panels(dashboard):
    """(section, type of panel, its configuration) of all panels that would be saved."""
    spec = json.loads(dashboard.specification(dashboard.workspace("somebody", "vat")))["spec"]
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [(section["name"], panel["viewType"], panel["config"]) for section in sections for panel in section["panels"]]


def test_it_has_its_four_sections(panels):
    assert list(dict.fromkeys(section for section, *_ in panels)) == ["Regularizers", "Error against ε", "Diagnostics", "Figures"]


def test_the_error_is_plotted_against_the_radius_of_the_runs_configuration(panels):
    scatter = [config for _, kind, config in panels if kind == "Scatter Plot"]
    assert {config["xAxis"] for config in scatter} == {"config:config.value.vat.eps"}
    assert {config["yAxis"] for config in scatter} == {"summary:val/error", "summary:test/accuracy", "summary:test/lds"}


def test_every_metric_it_shows_is_one_that_a_run_logs(panels, job):
    import vat.lightning.figures
    from vat.lightning.history import read

    logged = set()
    for regularizer in ("vat_entropy",):
        ran = job("data=moons", "model=mlp", "model.hidden=[8]", f"regularizer={regularizer}", "logger=csv", "trainer.log_every_n_steps=1")
        logged |= ran.metrics.keys() | {name for record in read(ran.folder / "history.jsonl") for name in record}
    shown = {metric for _, kind, config in panels if kind in ("Run History Line Plot", "Bar Chart") for metric in config["metrics"]}
    assert len(shown) > 10
    assert shown <= logged
    media = {key for _, kind, config in panels if kind == "Media Browser" for key in config["mediaKeys"]}
    assert media <= {f"figures/{name}" for name in vat.lightning.figures.CAPTIONS}


def test_saving_without_an_account_says_what_to_do(dashboard, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dashboard.py"])
    monkeypatch.setattr(dashboard.wandb, "login", lambda **_: False)
    with pytest.raises(SystemExit, match="needs a W&B account: run `wandb login`, or add --json"):
        dashboard.main()


def test_a_server_that_does_not_take_it_is_one_line(dashboard, monkeypatch):
    def refused(**_):
        raise dashboard.wandb.errors.CommError("no network\nand more")

    monkeypatch.setattr(sys, "argv", ["dashboard.py", "--entity", "somebody"])
    monkeypatch.setattr(dashboard.wandb, "login", refused)
    with pytest.raises(SystemExit, match=r"^error: W&B could not save the dashboard: no network$"):
        dashboard.main()
