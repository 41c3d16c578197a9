"""Every experiment trains, with its regularizer and with the controls, on data in the official format."""

import json
import re
from pathlib import Path

import official
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from vat.runs import default_eps, honesty, report, schema

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
REGULARIZERS = sorted(path.stem for path in (CONF / "regularizer").glob("*.yaml"))
WRITERS = {
    "vat.data.sets.mnist.MNIST": official.write_mnist,
    "vat.data.sets.cifar.CIFAR10": official.write_cifar10,
    "vat.data.sets.svhn.SVHN": official.write_svhn,
    "vat.data.sets.norb.NORB": official.write_norb,
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_starts_with_its_command(name):
    lines = (CONF / f"experiment/{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python src/train.py experiment={name}")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ("mnist", "synthetic")])
def test_an_experiment_says_its_target(name):
    assert "target: " in (CONF / f"experiment/{name}.yaml").read_text().splitlines()[2]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_a_batch_of_data_in_the_official_format(name, compose, job, tmp_path):
    cfg = compose(f"experiment={name}")
    # not tested: five power iterations and the sign, on conv-large, take ten times as long as the rest
    overrides = ["trainer.max_steps=1", "data.steps_per_epoch=1", "test=none"]
    if cfg.data._target_ in WRITERS:
        WRITERS[cfg.data._target_](tmp_path)
        # whitening by 3,072 × 3,072 covariances takes ten seconds, and has separate tests
        overrides += [f"data.data_dir={tmp_path}", "data.num_validation=20", "data.zca=false"]
        overrides += ["data.batch_size_labeled=4", "data.batch_size_unlabeled=4"]
        overrides += [] if cfg.data.num_labeled is None else ["data.num_labeled=20"]
    if cfg.data._target_.endswith(".Texts"):
        paths = official.write_imdb(tmp_path)
        overrides += [*(f"data.{name}={path}" for name, path in paths.items()), "data.num_labeled=20", "data.validation_share=0.2"]
    if cfg.data._target_ in WRITERS:
        with pytest.warns(UserWarning, match="Results are not comparable to those of the published set"):
            ran = job(f"experiment={name}", *overrides)
    else:
        ran = job(f"experiment={name}", *overrides)
    assert 0 <= ran.metrics["val/accuracy"] <= 1
    assert torch.load(ran.checkpoint, weights_only=True)["global_step"] == 1


def test_tuned_values_are_of_an_experiment_its_data_and_a_regularizer(compose):
    """Nothing would read a value under another name, and nobody would notice."""
    possible = set()
    for experiment, data in schema.tuned_for().items():
        assert compose(f"experiment={experiment}").data._target_ == compose(f"data={data}").data._target_
        names = {f"{experiment}_{data}_{r}": r for r in REGULARIZERS}
        for name in names.keys() & schema.tuned().keys():
            assert not honesty.unused(compose(f"experiment={experiment}", f"regularizer={names[name]}")), name
        possible |= names.keys()
    assert schema.tuned().keys() <= possible


def test_settings_without_effect_are_named(compose, capsys):
    assert not honesty.unused(compose())
    cfg = compose("+eps=1.5", "+half=0.5", "vat.weight=${half}", "+note=x")
    assert honesty.unused(cfg) == ["eps", "note"]
    honesty.tell_of_unused(honesty.unused(cfg), cfg)
    said = " ".join(capsys.readouterr().out.split())
    assert said == "eps (there is vat.eps and optimizer.eps), note: nothing in this run uses them"


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_run_names_no_setting_that_it_uses(job, capsys, monkeypatch, regularizer):
    monkeypatch.setattr(report.console, "quiet", False)
    job(f"regularizer={regularizer}", "+note=x")
    said = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"(\S+(?:, \S+)*): nothing in this run uses", said) == ["note"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experiment=mnist_100", "regularizer=vat"], ""),
        (["experiment=mnist_100", "regularizer=none"], ""),
        (["experiment=mnist_100", "regularizer=vat_published", "vat.eps=3"], ""),
        (
            ["experiment=mnist_100", "regularizer=vat_published"],
            "no tuned values for regularizer=vat_published: vat.eps=2.0 is a default",
        ),
        (
            ["experiment=mnist_100", "data=digits"],
            "tuned values (conf/tuned.yaml) are for data=mnist, and are not used for data=digits",
        ),
    ],
)
def test_a_radius_that_was_not_tuned_for_the_experiment_is_named(capsys, monkeypatch, overrides, said):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("train", overrides=overrides, return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    honesty.tell_of_tuned(cfg)
    found = " ".join(capsys.readouterr().out.split())
    assert said in found
    assert bool(said) == bool(found)


def test_tuned_values_are_left_out_on_other_data(compose, tmp_path):
    cfg = compose("experiment=mnist_100", "data=images", f"data.dir={tmp_path}")
    assert cfg.vat.eps == cfg.random_perturbation.eps == default_eps.FROM_DATA  # computed from the images
    assert (cfg.vat.eps_start, cfg.vat.ramp_up, cfg.class_balance.fade_out) == (None, 0, 0)
    assert compose("experiment=mnist_100", "data=digits").vat.eps == 2.0
    assert compose("experiment=mnist_100", "data=images", "vat.eps=3").vat.eps == 3


def test_schedules_are_shares_of_the_run(compose):
    cfg = compose("experiment=mnist_100", "trainer.max_steps=2000")
    assert (cfg.vat.eps_steps, cfg.vat.ramp_up, cfg.class_balance.fade_out) == (800, 250, 1000)
    cfg = compose("experiment=mnist_100", "trainer.max_steps=2000", "vat.ramp_up=1000", "class_balance.fade_out=${share:0.25}")
    assert (cfg.vat.ramp_up, cfg.class_balance.fade_out) == (1000, 500)
    assert compose("regularizer=mean_teacher", "trainer.max_steps=100").mean_teacher.ramp_up == 40
    assert compose("regularizer=pi_model").pi_model.ramp_up == 400


COMPOSED = json.loads((Path(__file__).parent / "files" / "tuned.json").read_text())
"""The regularizers' values of every experiment with every regularizer, when each pair of them had a file."""


@pytest.mark.parametrize("tuned", [True, pytest.param(False, marks=pytest.mark.long)], ids=["tuned", "not tuned"])
def test_every_experiment_has_the_values_it_always_had(compose, tuned):
    data, of_table = schema.tuned_for(), schema.tuned()
    for pair, terms in COMPOSED.items():
        experiment, regularizer = pair.split()
        if (f"{experiment}_{data.get(experiment)}_{regularizer}" in of_table) is not tuned:
            continue
        cfg = compose(f"experiment={experiment}", f"regularizer={regularizer}")
        assert {term: {key: cfg[term][key] for key in values} for term, values in terms.items()} == terms, pair
        assert not set(terms) ^ {key for key in ("vat", "adversarial", "random_perturbation", "class_balance", "entropy") if key in cfg}
        made = {type(one).__name__ for one in instantiate(cfg.regularizers)}
        assert made >= {cfg[term]._target_.rsplit(".")[-1] for term in terms}, pair


def test_tuned_values_may_be_those_of_another_experiment(compose):
    one, other = (compose(f"experiment={name}", "regularizer=vat").vat for name in ("mnist_100", "mnist_1000"))
    assert one == other
    assert one.direction == "random_margin"


def test_a_value_on_the_command_line_wins_over_the_tuned_one(compose):
    assert compose("experiment=synthetic_moons", "vat.eps=3").vat.eps == 3
