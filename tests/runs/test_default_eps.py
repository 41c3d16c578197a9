"""The default radius: 2 for the project's own sets, computed for a user's data. All files record the number."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vat.data.neighbours import GROUP, SHARE
from vat.runs import resume, training
from vat.runs.default_eps import FROM_DATA, filled_in
from vat.runs.folders import settings_digest
from vat.runs.records import read_checkpoint


def written(path, scale=1.0, number=90):
    rng = np.random.default_rng(0)
    y = np.arange(number) % 3
    x = scale * (3 * np.eye(3, 6)[y] + rng.normal(size=(number, 6)))
    y[number // 2 :] = -1
    np.savez(path, x=x.astype(np.float32), y=y)
    return f"data.train={path}"


@pytest.fixture
def table(tmp_path):
    return written(tmp_path / "table.npz")


def own(*overrides):
    return ("data=arrays", "data.standardize=false", "model=mlp", "model.hidden=[8]", *overrides)


def config(run):
    return OmegaConf.load(run.folder / "config.yaml")


def median_distance(path):
    """Distance to the nearest of some random examples, by numpy: the mean over many draws."""
    rng, x = np.random.default_rng(1), np.load(path)["x"].astype(np.float64)
    found = []
    for _ in range(300):
        some = x[rng.permutation(len(x))[:GROUP]]
        between = np.linalg.norm(some[:, None] - some[None], axis=2)
        np.fill_diagonal(between, np.inf)
        found.append(np.median(between.min(1)))
    return np.mean(found)


def test_the_projects_own_sets_keep_their_radius(compose):
    for data in ("digits", "moons", "mnist", "cifar10", "svhn"):
        assert compose(f"data={data}").vat.eps == 2.0
    assert compose("regularizer=adversarial").adversarial.eps == 1.0
    assert compose("regularizer=adversarial_linf").adversarial.eps == 0.1
    assert compose("regularizer=random_perturbation").random_perturbation.eps == 2.0


def test_own_data_have_a_computed_radius(job, table, tmp_path):
    ran = job(*own(table, "regularizer=vat_class_balance_random_perturbation"))
    eps = config(ran).vat.eps
    assert eps == pytest.approx(SHARE * median_distance(tmp_path / "table.npz"), rel=0.15)  # four groups, without held-out examples
    assert config(ran).random_perturbation.eps == pytest.approx(4 * eps, rel=0.01)
    record = read_checkpoint(ran.checkpoint)["record"]["config"]
    assert record["vat"]["eps"] == eps
    assert [node["eps"] for node in record["regularizers"] if "eps" in node] == [eps, record["random_perturbation"]["eps"]]


def test_a_perceptron_is_as_wide_as_the_features_ask_for(job, table, capsys, monkeypatch):
    from vat.runs import report

    monkeypatch.setattr(report.console, "width", 1000)
    monkeypatch.setattr(report.console, "quiet", False)
    ran = job("data=arrays", "model=mlp", table, "trainer.max_steps=1", name="computed")
    assert list(config(ran).model.hidden) == list(read_checkpoint(ran.checkpoint)["record"]["config"]["model"]["hidden"]) == [64, 64]
    assert "model.hidden=[64, 64]: chosen for inputs of 6 numbers" in capsys.readouterr().out
    typed = job("data=arrays", "model=mlp", table, "trainer.max_steps=1", "model.hidden=[1200,1200]", name="typed")
    assert list(config(typed).model.hidden) == [1200, 1200]
    assert "chosen for inputs" not in capsys.readouterr().out
    assert typed.checkpoint.stat().st_size > 50 * ran.checkpoint.stat().st_size


def test_the_radius_follows_the_unit_of_the_data(job, tmp_path):
    small, large = (job(*own(written(tmp_path / f"{scale}.npz", scale)), name=str(scale)) for scale in (1.0, 100.0))
    assert config(large).vat.eps == pytest.approx(100 * config(small).vat.eps, rel=0.01)


def test_class_balance_takes_its_shares_from_the_labels(job, compose, tmp_path):
    path = tmp_path / "uneven.npz"
    y = np.repeat([0, 1, 2], [60, 30, 30])
    np.savez(path, x=np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32), y=y)
    recipe = own(f"data.train={path}", "regularizer=few_labels")
    assert list(config(job(*recipe)).class_balance.prior) == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    typed = job(*recipe, "class_balance.prior=[1,1,2]", name="typed")
    assert list(config(typed).class_balance.prior) == [1, 1, 2]
    digits = compose("regularizer=few_labels")
    assert digits.class_balance.prior is None
    assert (digits.vat.eps, digits.random_perturbation.eps) == (2.0, 8.0)


def test_a_typed_radius_stays(job, table):
    assert config(job(*own(table, "vat.eps=2.0"))).vat.eps == 2.0


def test_a_cube_is_as_large_as_its_ball(job, table):
    ball, cube = (job(*own(table, f"regularizer={name}"), name=name) for name in ("adversarial", "adversarial_linf"))
    assert config(cube).adversarial.eps == pytest.approx(config(ball).adversarial.eps / 6**0.5, rel=0.01)


def test_lds_is_measured_at_the_radius_of_the_data(job, table):
    ran = job(*own(table, "vat.eps=100"))
    default = job(*own(table), name="default")
    assert ran.metrics["test/lds"] != 0
    saved = read_checkpoint(default.checkpoint)
    assert saved["record"]["config"]["vat"]["eps"] == config(default).vat.eps


def test_a_run_resumes_and_a_folder_knows_its_job(job, table, compose, tmp_path):
    ran = job(*own(table, "regularizer=vat"))
    job(*own(table, "regularizer=vat", f"ckpt_path={ran.checkpoint}"), name="resumed")
    same, other = (compose(*own(table, "regularizer=vat", *more)) for more in ((), ("vat.eps=7",)))
    digest = json.loads((ran.folder / "environment.json").read_text())["settings"]
    quick = ("trainer.max_steps=5", "data.steps_per_epoch=5", "logger=none", "figures=null", "trainer.enable_progress_bar=false")
    same = compose(*quick, *own(table, "regularizer=vat"))
    assert digest == settings_digest(same)
    resume.refuse_other_job(same, ran.folder)
    typed = compose(*quick, *own(table, "regularizer=vat", f"vat.eps={config(ran).vat.eps}"))
    resume.refuse_other_job(typed, ran.folder)  # the same number is the same job
    with pytest.raises(ValueError, match="holds a job of other settings"):
        resume.refuse_other_job(other, ran.folder)


@pytest.mark.filterwarnings("ignore:.*have the values of examples")
def test_equal_inputs_need_a_typed_radius(job, tmp_path):
    path = tmp_path / "equal.npz"
    np.savez(path, x=np.ones((40, 3), np.float32), y=np.arange(40) % 2)
    with pytest.raises(ValueError, match="all inputs of the pool are equal"):
        job(*own(f"data.train={path}"))
    job(*own(f"data.train={path}", "vat.eps=1"))


def test_the_configuration_that_was_composed_is_not_changed(compose, table):
    from hydra.utils import instantiate

    cfg = compose(*own(table))
    data = instantiate(cfg.data, _convert_="all")
    data.setup()
    filled, computed = filled_in(cfg, data)
    assert cfg.vat.eps == FROM_DATA
    assert computed is not None
    assert filled.vat.eps == filled.regularizers[0].eps == computed.radii["vat.eps"]


def test_touching_classes_are_warned_of_before_training(compose, tmp_path, monkeypatch, capsys):
    from vat.runs import report

    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "noise.npz"
    np.savez(path, x=torch.randn(120, 20, generator=generator).numpy(), y=torch.randint(2, (120,), generator=generator).numpy())
    monkeypatch.setattr(report.console, "quiet", False)
    quick = ("trainer.max_steps=2", "data.steps_per_epoch=2", "logger=none", "figures=null", "trainer.enable_progress_bar=false")
    training.train(compose(*quick, *own(f"data.train={path}", "regularizer=vat")), tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "vat.eps=" in said
    assert "VAT may do harm" in said
    assert said.index("VAT may do harm") < said.index("Result")
    assert "validation has 12 examples" in said


def test_few_labels_is_the_default_and_trains_without_vat_if_classes_touch(job, table, tmp_path):
    path = tmp_path / "noise.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(150, 20)).astype(np.float32), y=rng.integers(2, size=150))
    noise = own(f"data.train={path}")
    assert config(job(*noise, name="noise")).regularizers == []
    for number, more in enumerate((("vat_if_classes_touch=true",), ("vat.eps=1",))):
        assert len(config(job(*noise, *more, name=f"anyway-{number}")).regularizers) == 3
    assert len(config(job(*noise, "regularizer=vat", name="vat")).regularizers) == 1
    found = config(job(*own(table), name="apart"))
    assert len(found.regularizers) == 3
    assert found.class_balance.fade_out == 2  # of 5 steps


@pytest.mark.parametrize(("features", "times"), [(4, 2.0), (9, 3.0), (25, 4.0)])
def test_random_perturbations_are_smaller_for_few_numbers(job, tmp_path, features, times):
    path = tmp_path / "table.npz"
    y = np.arange(80) % 2
    x = 3 * np.eye(2, features)[y] + np.random.default_rng(0).normal(size=(80, features))
    np.savez(path, x=x.astype(np.float32), y=y)
    for name, more in {"computed": (), "typed": ("vat.eps=0.7",)}.items():
        found = config(job(*own(f"data.train={path}"), *more, name=name))
        assert found.random_perturbation.eps == pytest.approx(times * found.vat.eps)
        assert list(found.class_balance.prior) == pytest.approx([0.5, 0.5], abs=0.02)
