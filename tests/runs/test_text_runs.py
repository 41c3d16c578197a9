"""A run on texts, from the file to the predictions. Evaluation, resuming, prediction and export use the trained network."""

import csv
import json
from pathlib import Path

import pytest
import torch
from refusals import refused

import evaluate
import export
import predict
from vat.runs import checkpoints, exporting, records

ROOT = Path(__file__).parents[2]
WORDS = {"good": ["great", "fine"], "bad": ["dull", "awful"]}


def rows(number, start=0):
    labels = ["good", "bad"]
    rest = ["the", "film", "was", "about", "a", "city"]
    return [
        (" ".join([*rest[i % 5 : i % 5 + 3], WORDS[labels[i % 2]][i // 2 % 2], rest[i % 3], f"n{i % 7}"]), labels[i % 2])
        for i in range(start, start + number)
    ]


def write(path, examples, labeled=None):
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["review", "sentiment"])
        out.writerows([text, label if labeled is None or i < labeled else ""] for i, (text, label) in enumerate(examples))
    return str(path)


@pytest.fixture
def overrides(tmp_path):
    train, test = write(tmp_path / "train.csv", rows(200), labeled=80), write(tmp_path / "test.csv", rows(40, start=200))
    data = ("data=text", f"data.train={train}", f"data.test={test}", "data.text=review", "data.label=sentiment")
    return (
        *data,
        "model=text_cnn",
        "model.dim=8",
        "model.channels=8",
        "optimizer.lr=0.02",
        "trainer.max_steps=40",
        "data.steps_per_epoch=20",
        "test=last",
    )


@pytest.mark.filterwarnings("ignore:.*have the values of examples:UserWarning")
def test_from_a_file_of_texts_to_predictions(job, overrides, command, tmp_path):
    run = job(*overrides, "regularizer=vat_entropy", "vat.eps=0.5", "figures=0")
    record = checkpoints.read_checkpoint(run.checkpoint)["record"]
    assert "city" in record["preparation"]["vocabulary"]
    assert run.metrics["test/accuracy"] > 0.9
    assert {"kl.png", "confusion.png", "reliability.png"} <= {path.name for path in (run.folder / "figures").iterdir()}
    assert not (run.folder / "figures" / "perturbations.png").exists()

    command(evaluate, f"ckpt_path={run.checkpoint}")
    (folder,) = (run.folder / "evaluation").iterdir()
    found = json.loads((folder / "robustness.json").read_text())
    assert found["examples"] == 40
    assert found["clean"]["accuracy"] == pytest.approx(run.metrics["test/accuracy"])
    assert found["clean"]["calibration_error"] == pytest.approx(run.metrics["test/calibration_error"], abs=1e-6)
    assert found["clean"]["lds"] > 0
    assert found["robust"] == found["corruptions"] == found["warnings"] == {}
    command(evaluate, f"ckpt_path={run.checkpoint}", "report=direction", "limit=8")
    for typed in ("attack=pgd", "norms=[l2]", "eps.l2=[1]"):
        assert "not words" in refused(command, evaluate, f"ckpt_path={run.checkpoint}", typed)

    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text, _ in rows(40, start=200)))
    written = {}
    for source in (tmp_path / "test.csv", texts):
        command(predict, f"ckpt_path={run.checkpoint}", f"input={source}", f"output=out{source.suffix}.csv")
        with open(f"out{source.suffix}.csv") as file:
            written[source.suffix] = list(csv.DictReader(file))
    assert written[".csv"] == written[".txt"]
    right = [line["prediction"] == label for line, (_, label) in zip(written[".csv"], rows(40, start=200), strict=True)]
    assert sum(right) / 40 == pytest.approx(run.metrics["test/accuracy"])
    texts.write_text("a text\n\n")
    assert "line 2 is blank" in refused(command, predict, f"ckpt_path={run.checkpoint}", f"input={texts}")
    assert "must end in" in refused(command, predict, f"ckpt_path={run.checkpoint}", f"input={ROOT / 'README.md'}")

    command(export, f"ckpt_path={run.checkpoint}", "format=torch_export")
    model, described = exporting.load_torch_export(run.checkpoint.with_suffix(".pt2"))
    described = json.loads(described)
    assert described["input"]["dtype"] == "int32"
    assert described["input"]["preparation"] == record["preparation"]
    network = records.load_network(run.checkpoint)
    ids = torch.randint(10, (3, *record["input_shape"]), dtype=torch.int32)
    torch.testing.assert_close(model(ids), network(ids))


@pytest.mark.filterwarnings("ignore:.*have the values of examples:UserWarning")
def test_texts_are_evaluated_with_the_words_of_training(job, overrides, command, tmp_path):
    run = job(*overrides, "regularizer=none", "figures=null")
    other = write(tmp_path / "other.csv", [(f"unheard of {text}", label) for text, label in rows(60, start=400)])
    data = ("data=text", f"data.train={other}", "data.text=review", "data.label=sentiment", "data.test_share=0.5")
    command(evaluate, f"ckpt_path={run.checkpoint}", *data)
    (folder,) = (run.folder / "evaluation").iterdir()
    assert json.loads((folder / "robustness.json").read_text())["clean"]["accuracy"] > 0.9
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("great", "grand"))
    assert "the files have changed" in refused(command, evaluate, f"ckpt_path={run.checkpoint}")


@pytest.mark.filterwarnings("ignore:.*have the values of examples:UserWarning")
@pytest.mark.parametrize("regularizer", ["vat", "random_perturbation", "mean_teacher", "pi_model"])
@pytest.mark.filterwarnings("ignore:.*the run ends earlier")
def test_a_resumed_run_equals_the_complete_run(job, overrides, differences, regularizer):
    ramp = {"mean_teacher": "mean_teacher.ramp_up=30", "pi_model": "pi_model.ramp_up=30"}.get(regularizer)  # not a share of the shorter run
    brief = ("test=none", "figures=null", "scheduler=null", f"regularizer={regularizer}", *([ramp] if ramp else []))
    whole = job(*overrides, *brief, name="whole")
    first = job(*overrides, *brief, "trainer.max_steps=20", name="first")
    rest = job(*overrides, *brief, f"ckpt_path={first.checkpoint}", name="rest")
    ends = [checkpoints.read_checkpoint(run.checkpoint)["state_dict"] for run in (whole, rest)]
    assert differences(*ends) == []


def test_a_run_does_not_resume_with_other_words(job, overrides, tmp_path):
    first = job(*overrides, "test=none", "figures=null", "regularizer=none")
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("great", "grand"))
    with pytest.raises(ValueError, match="prepared differently"):
        job(*overrides, "test=none", "figures=null", "regularizer=none", f"ckpt_path={first.checkpoint}", name="second")


def test_a_network_for_texts_needs_texts(job):
    with pytest.raises(ValueError, match="which only texts have"):
        job("model=text_mean", "regularizer=none")


@pytest.mark.parametrize("regularizer", ["adversarial", "class_balance"])
@pytest.mark.filterwarnings("ignore:.*have the values of examples:UserWarning")
def test_other_terms_train_on_texts(job, overrides, regularizer):
    given = [word for word in overrides if not word.startswith(("model.channels", "model="))]
    run = job(*given, "model=text_mean", "test=none", "figures=null", "trainer.max_steps=2", f"regularizer={regularizer}")
    assert run.checkpoint.exists()


def test_a_term_that_knows_no_padding_is_refused(job, overrides):
    with pytest.raises(ValueError, match="does not support a mask"):
        job(*overrides, "test=none", "figures=null", "regularizer=vat_published")


@pytest.mark.parametrize(
    "nonsense", [{"vocabulary": [3]}, {"counts": "many"}, {"counts": [1, -1]}, {"max_length": 10**9}, {"vocabulary_size": 10**9}]
)
def test_a_checkpoint_that_makes_words_up_is_refused(job, overrides, nonsense):
    run = job(*overrides, "test=none", "figures=null", "regularizer=none", "trainer.max_steps=1")
    saved = torch.load(run.checkpoint, weights_only=True)
    saved["record"]["preparation"] |= nonsense
    torch.save(saved, run.checkpoint)
    with pytest.raises(ValueError, match="does not describe its weights"):
        records.load_network(run.checkpoint)
