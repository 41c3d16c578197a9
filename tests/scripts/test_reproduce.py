"""The tables: every job composes, every method is offered as much."""

from pathlib import Path

import pytest
import running_scripts

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"


@pytest.fixture
def reproduce():
    return running_scripts.load("reproduce")


@pytest.mark.parametrize(
    "table", ["digits", "directions", "directions_mnist_100", "directions_mnist_100_compute", "cifar10_4000"]
)  # the others are made as the second
def test_every_job_of_a_table_composes(reproduce, compose, table):
    study = reproduce.STUDIES[table]
    for method in study.methods:
        compose(*study.overrides, *method.overrides, *(f"{method.tuned}={value}" for value in method.candidates[:1]))


def test_every_table_is_of_an_experiment_that_there_is(reproduce):
    experiments = {path.stem for path in (SCRIPT.parents[1] / "conf" / "experiment").glob("*.yaml")}
    for name, study in reproduce.STUDIES.items():
        assert name in ("digits", "directions", "directions_compute") or study.overrides[0].removeprefix("experiment=") in experiments, name


def test_the_papers_errors_stand_beside_their_methods(reproduce):
    study = reproduce.STUDIES["cifar10_4000"]
    assert [m.paper for m in study.methods] == ["–", "–", "–", "11.36 ± 0.34", "10.55 ± 0.05"]
    assert [m.name for m in study.methods] == ["none", "random perturbation", "adversarial", "VAT", "VAT + entropy"]


def test_every_table_offers_each_method_as_many_candidates(reproduce):
    for name, study in reproduce.STUDIES.items():
        efforts = {len(m.candidates) for m in study.methods if m.tuned}
        assert len(efforts) == 1, name
        assert not set(study.tuning_seeds) & set(study.seeds)


@pytest.mark.parametrize(("budget", "seconds"), [("90s", 90), ("10m", 600), ("0.5h", 1800)])
def test_a_budget_is_a_time(reproduce, budget, seconds):
    assert reproduce.seconds(budget) == seconds


@pytest.mark.parametrize("budget", ["10", "m", "0m", "-1m", "10 m", "1d", ""])
def test_a_budget_that_is_no_time_is_refused(reproduce, budget):
    with pytest.raises(reproduce.argparse.ArgumentTypeError, match="as 90s, 10m or 2h"):
        reproduce.seconds(budget)
