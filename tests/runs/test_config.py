"""Every configuration composes and runs. A mistake is refused as early as possible."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.utils import instantiate

CONF = Path(__file__).parents[2] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "attack")  # belongs to evaluate
REGULARIZERS = sorted(path.stem for path in (CONF / "regularizer").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OF_TEXTS = ("text_cnn", "text_mean", "huggingface")
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "custom")
TERMS = {
    "adversarial": {"adversarial"},
    "class_balance": {"class_balance"},
    "entropy": {"entropy"},
    "few_labels": {"vat", "class_balance", "random_perturbation"},
    "mean_teacher": {"mean_teacher"},
    "none": set(),
    "pi_model": {"pi_model"},
    "random_perturbation": {"random_perturbation"},
    "vat": {"vat"},
    "vat_class_balance": {"vat", "class_balance"},
    "vat_class_balance_random_perturbation": {"vat", "class_balance", "random_perturbation"},
    "adversarial_linf": {"adversarial"},
    "vat_entropy": {"vat", "entropy"},
    "vat_entropy_mean_teacher": {"vat", "entropy", "mean_teacher"},
    "vat_published": {"published_vat"},
}


def described(shape, mean=None, std=None):
    """The record of a run on data in seven classes."""
    return {"input_shape": list(shape), "class_names": list("abcdefg"), "mean": mean, "std": std}


GIVEN = {
    "custom": ["+data.labeled=[]"],
    "images": ["data.dir=pictures"],
    "arrays": ["data.train=features.npz"],
    "text": ["data.train=reviews.csv"],
}  # options without a default, of a user's own data


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


# --------------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_every_choice_of_every_group_composes(compose, group, choice):
    extra = ["model._target_=torch.nn.Identity"] if (group, choice) == ("model", "custom") else []
    cfg = compose(f"{group}={choice}", *extra)
    assert cfg.seed == 0
    assert all(f"{key}" in cfg for key in ("data", "model", "regularizers", "optimizer", "trainer", "logger"))


def test_the_tests_name_every_regularizer_configuration():
    assert sorted(TERMS) == REGULARIZERS


@pytest.mark.parametrize("choice", REGULARIZERS)
def test_every_regularizer_configuration_makes_its_regularizers(compose, choice):
    from vat.regularizers import Regularizer, by_unique_name

    made = instantiate(compose(f"regularizer={choice}").regularizers, _convert_="all")
    assert all(isinstance(r, Regularizer) for r in made)
    assert set(by_unique_name(made)) == TERMS[choice]


@pytest.mark.parametrize("choice", choices("attack"))
def test_attacks_have_the_names_that_evaluations_begun_earlier_know(compose, choice):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("evaluate", overrides=[f"attack={choice}", "ckpt_path=last.ckpt"])
    assert {node["_target_"].rpartition(".")[0] for node in cfg.attacks} == {"vat.attacks"}


@pytest.mark.parametrize(
    "option", ["vat.xi=10", "vat.reverse_kl=true", "vat.move_statistics=true", "vat.adversarial_entropy=1"]
)  # each was a configuration before
def test_the_ways_of_the_ports_are_options(compose, option):
    (made,) = instantiate(compose("regularizer=vat_published", option).regularizers, _convert_="all")
    name, value = option.removeprefix("vat.").split("=")
    assert getattr(made, name) == (True if value == "true" else float(value))
    (usual,) = instantiate(compose("regularizer=vat_published").regularizers, _convert_="all")
    assert (usual.xi, usual.reverse_kl, usual.move_statistics, usual.adversarial_entropy) == (1e-6, False, False, 0.0)


@pytest.mark.parametrize("choice", choices("data"))
def test_every_data_configuration_makes_its_data_with_the_seed_of_the_run(compose, choice):
    for seed in (0, 3):
        overrides = (f"data={choice}", f"seed={seed}", *GIVEN.get(choice, []))
        assert instantiate(compose(*overrides).data, _convert_="all").seed == seed


@pytest.mark.parametrize("choice", ["digits", "moons", "circles"])  # the others need files
def test_the_seed_of_the_run_reaches_the_data_themselves(compose, choice):
    splits = []
    for seed in (0, 3):
        data = instantiate(compose(f"data={choice}", f"seed={seed}").data, _convert_="all")
        data.setup()
        splits.append((data.split.digest, data.x))
    (one, x), (other, z) = splits
    assert one != other or not torch.equal(x, z)


@pytest.mark.parametrize("choice", choices("optimizer"))
def test_every_optimizer_and_schedule_configuration_takes_a_step(compose, choice):
    cfg = compose(f"optimizer={choice}", "trainer.max_steps=1")  # the last step too, because some rates are constant for long
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = instantiate(cfg.optimizer, _convert_="all")([parameter])
    scheduler = instantiate(cfg.scheduler, _convert_="all")(optimizer)
    parameter.square().sum().backward()
    optimizer.step()
    scheduler.step()
    assert (parameter < 1).all()
    assert optimizer.param_groups[0]["lr"] < cfg.optimizer.lr


@pytest.mark.parametrize("choice", ["cpu", "debug"])
def test_every_trainer_for_this_machine_can_be_made(compose, choice):
    trainer = instantiate(compose(f"trainer={choice}").trainer, logger=False)
    assert trainer.world_size == 1


@pytest.mark.parametrize(
    ("choice", "shape"),
    [(model, (3, 32, 32)) for model in MODELS if model not in OF_TEXTS] + [("cnn", (1, 8, 8)), ("cnn", (3, 8, 8)), ("mlp", (100,))],
)
def test_every_model_gives_logits(compose, choice, shape):
    from vat.runs import records

    network = records.make_network(compose(f"model={choice}").model, described(shape)).eval()
    logits = network(torch.zeros(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("choice", ["text_cnn", "text_mean"])
def test_every_model_of_texts_gives_logits_for_words(compose, choice):
    from vat.runs import records

    words = described((5,)) | {"preparation": {"counts": [0, 3, 2], "vocabulary_size": 3}}
    logits = records.make_network(compose(f"model={choice}").model, words).eval()(torch.tensor([[2, 1, 2, 0, 0]], dtype=torch.int32))
    assert logits.shape == (1, 7)


def test_data_with_a_mean_are_standardised_by_the_networks_first_layer(compose):
    from vat.runs import records

    cfg = compose("model=custom", "model._target_=torch.nn.Flatten").model
    x = torch.randn(5, 2, 3, 4)
    found = records.make_network(cfg, described((2, 3, 4), mean=[0.5, -1.0], std=[2.0, 4.0]))(x)
    expected = torch.stack([(x[:, 0] - 0.5) / 2, (x[:, 1] + 1) / 4], dim=1).flatten(1)
    torch.testing.assert_close(found, expected)


def test_a_custom_model_is_told_only_what_it_takes(compose):
    from vat.runs import records

    cfg = compose("model=custom", "model._target_=torch.nn.Flatten", "+model.start_dim=1")
    network = records.make_network(cfg.model, described((2, 3)))
    assert network(torch.zeros(5, 2, 3)).shape == (5, 6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["vat.eps=abc"],
        ["vat.eps=null"],
        ["vat.esp=1"],
        ["vat.num_power_iterations=1.5"],
        ["regularizer=vat_entropy", "entropy.weight=abc"],
        ["regularizer=none", "vat.eps=1"],
        ["model.chanels=[1]"],
        ["model.channels=[a]"],
        ["data.num_labeled=many"],
        ["data.num_labelled=10"],
        ["data.balanced=maybe"],
        ["trainer.max_steps=abc"],
        ["trainer.max_step=1"],
        ["optimizer.lr=fast"],
        ["optimizer.learning_rate=1"],
        ["scheduler.T_max=abc"],
        ["logger.proyect=x"],
        ["sed=1"],
    ],
    ids=" ".join,
)
def test_a_wrong_key_or_type_is_refused_at_composition(compose, overrides):
    wrong = overrides[-1].split("=")[0]
    with pytest.raises(ConfigCompositionException, match=wrong):
        compose(*overrides)


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_choice_is_refused_with_the_choices_there_are(compose, group):
    with pytest.raises((MissingConfigException, HydraException), match=f"{group}/nonesuch") as error:
        compose(f"{group}=nonesuch")
    assert all(choice in str(error.value) for choice in choices(group))


# ------------------------------------------------------------------------------------------------------------ training


def logged(folder):
    import csv

    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def steps(n):
    return [
        f"trainer.max_steps={n}",
        f"data.steps_per_epoch={n}",
        "trainer.log_every_n_steps=1",
        "logger=csv",
        "test=none",
    ]


@pytest.mark.parametrize("choice", REGULARIZERS)
def test_every_regularizer_trains_and_logs_its_terms(job, choice):
    run = job(*steps(3), f"regularizer={choice}", "data=moons", "model=mlp", "model.hidden=[20]")
    values = logged(run.folder)
    losses = values["train/loss"]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    terms = {"cross_entropy", *TERMS[choice]}
    logged_terms = {name.removeprefix("train/") for name in values if name.startswith("train/") and name.count("/") == 1}
    assert logged_terms == terms | {"loss", "lr"}
    for i, loss in enumerate(losses):
        assert sum(values[f"train/{term}"][i] for term in terms) == pytest.approx(loss, rel=1e-5)
    if choice != "none" and choice != "pi_model" and choice != "mean_teacher":
        assert all(max(values[f"train/{term}"]) > 0 for term in terms)


@pytest.mark.parametrize("choice", EXPERIMENTS)
def test_every_experiment_states_its_command_and_composes_from_it(compose, choice):
    import re

    text = (CONF / "experiment" / f"{choice}.yaml").read_text()
    (command,) = re.findall(r"^# python src/train.py (.*)$", text, re.MULTILINE)
    assert f"experiment={choice}" in command
    compose(*command.split())


@pytest.mark.parametrize("choice", ["csv", "tensorboard", "none"])
def test_every_logger_that_needs_no_account_writes_what_it_says(job, choice):
    run = job(f"logger={choice}", "trainer.log_every_n_steps=1", "test=none")
    kinds = {"csv": "metrics.csv", "tensorboard": "events.*"}
    written = {kind for kind, pattern in kinds.items() if list(run.folder.glob(pattern))}
    assert written == {choice} - {"none"}
    assert (run.folder / "metrics.json").exists()


def test_two_terms_of_one_kind_are_logged_under_different_names(job):
    two = ("+wide={_target_:vat.VAT,eps:4.0}", "regularizers=[${vat},${wide}]")
    values = logged(job(*steps(2), *two).folder)
    assert values["train/vat"] != values["train/vat_2"]
    for i, loss in enumerate(values["train/loss"]):
        parts = [values[f"train/{name}"][i] for name in ("cross_entropy", "vat", "vat_2")]
        assert sum(parts) == pytest.approx(loss, rel=1e-5)


def test_a_regularizer_may_be_written_into_the_list_itself(job):
    job(*steps(2), "regularizers=[{_target_:vat.Entropy,weight:0.5}]")
