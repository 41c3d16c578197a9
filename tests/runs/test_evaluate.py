"""The commands evaluate, export and predict on one small run: the files that they write, and their refusals."""

import base64
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import instantiate
from refusals import refused

import evaluate
import export
import predict
import train
from vat.attacks import Attack
from vat.data.own.arrays import Arrays
from vat.runs import checkpoints, exporting, predicting, records, report, robustness_report, subject, training

ROOT = Path(__file__).parents[2]
ATTACKS = sorted(path.stem for path in (ROOT / "conf" / "attack").glob("*.yaml"))
QUICK = ("limit=40", "batch_size=25", "attack=fgm", "eps.l2=[0.5,2]", "eps.linf=[0.25]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 60 steps on the digits, and one of another network."""
    folder = tmp_path_factory.mktemp("runs")
    quiet = ("trainer.max_steps=60", "data.steps_per_epoch=60", "logger=none", "trainer.enable_progress_bar=false", "test=none")
    report.console.quiet = True
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, overrides in (
            ("cnn", ("model=cnn", "regularizer=none")),
            ("mlp", ("model=mlp", "model.hidden=[32]", "regularizer=none")),
        ):
            training.train(hydra_compose("train", overrides=[*quiet, *overrides]), folder / name)
    report.console.quiet = False
    return SimpleNamespace(**{name: folder / name / "checkpoints" / "last.ckpt" for name in ("cnn", "mlp")})


@pytest.fixture
def main(command):
    return command


def found(checkpoint):
    (folder,) = (checkpoint.parents[1] / "evaluation").iterdir()
    return folder, json.loads((folder / "robustness.json").read_text())


# ------------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("choice", ATTACKS)
def test_every_attack_configuration_makes_its_attacks(choice):
    if choice == "autoattack":
        pytest.importorskip("pyautoattack")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra_compose("evaluate", overrides=[f"attack={choice}", "ckpt_path=x"])
    made = instantiate(cfg.attacks, _convert_="all")
    assert all(isinstance(attack, Attack) for attack in made)
    names = [attack.name for attack in made]
    assert choice in (*names, "standard", "worst_case")
    assert len(set(names)) == len(names)


def test_an_evaluation_writes_json_and_figures_and_resumes(main, trained, monkeypatch):
    checkpoint = trained.cnn
    overrides = (f"ckpt_path={checkpoint}", f"source={trained.mlp}", *QUICK)
    main(evaluate, *overrides)
    folder, result = found(checkpoint)
    assert {path.name for path in folder.iterdir()} == {"results.jsonl", "robustness.json", "curves.png", "examples.png"}
    assert (result["examples"], result["of"]) == (40, 597)
    assert result["robust"]["l2"]["eps"] == [0.5, 2.0]
    assert set(result["robust"]["linf"]["accuracy"]) == {"fgm", "transfer", "worst"}
    lines = (folder / "results.jsonl").read_text()
    monkeypatch.setattr(robustness_report.robustness, "clean_measures", None)  # nothing is measured again
    monkeypatch.setattr(robustness_report, "drawings", None)  # and not drawn again
    before = (folder / "robustness.json").stat().st_mtime_ns
    main(evaluate, *overrides)
    assert (folder / "robustness.json").stat().st_mtime_ns > before  # a study takes the newest
    assert found(checkpoint) == (folder, result)
    assert (folder / "results.jsonl").read_text() == lines


NOISY = """
import torch
from torch import nn

class Noisy(nn.Module):
    # Every pass gives another output, and some of the predictions change from one call to the next.
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    def forward(self, x):
        return self.layers(x) + 2 * torch.randn(len(x), 1, generator=None) * torch.randn(1, 10)
"""


def test_a_randomised_network_is_evaluated_to_the_end(main, tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    short = ("trainer.max_steps=20", "data.steps_per_epoch=20", "logger=none", "figures=null", "trainer.enable_progress_bar=false")
    main(train, "model=custom", "model._target_=noisy.Noisy", "regularizer=none", *short, "test=none", "hydra.run.dir=run")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    main(evaluate, f"ckpt_path={checkpoint}", "allow_targets=[noisy]", *QUICK)
    folder, result = found(checkpoint)
    assert result["examples"] == 40
    assert "randomness" in " ".join(result["warnings"]) or "random" in " ".join(result["warnings"].values())
    assert (folder / "curves.png").exists()


def test_a_figure_that_cannot_be_drawn_costs_no_number(tmp_path):
    def broken():
        raise MemoryError("no more")

    with pytest.warns(UserWarning, match="figures of the evaluation are missing: MemoryError: no more"):
        robustness_report.keep(tmp_path, {"examples": 3}, broken)
    assert json.loads((tmp_path / "robustness.json").read_text()) == {"examples": 3}
    drawn = []
    robustness_report.keep(tmp_path, {"examples": 3}, lambda: drawn.append(1) or {})  # tried again: the figure is missing
    assert drawn


def test_the_complete_test_part_gives_the_accuracy_of_the_runs_own_test(main, trained, tmp_path):
    checkpoint = tmp_path / "copy" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(trained.mlp.read_bytes())
    main(evaluate, f"ckpt_path={checkpoint}", "attack=fgm", "eps.l2=[1.0]", "norms=[l2]", "logger=csv")
    (folder,) = (checkpoint.parent / "evaluation").iterdir()
    result = json.loads((folder / "robustness.json").read_text())
    data = instantiate({"_target_": "vat.data.sets.digits.Digits"})
    data.setup()
    with torch.no_grad():
        right = records.load_network(checkpoint)(data.x[data.split.test]).argmax(1) == data.y[data.split.test]
    assert result["examples"] == 597
    assert result["clean"]["accuracy"] == pytest.approx(float(right.double().mean()))
    assert "evaluation/accuracy" in (checkpoint.parent / "metrics.csv").read_text()


def test_metrics_curves_and_pictures_arrive_in_the_offline_wandb_run(main, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(trained.cnn.read_bytes())
    main(evaluate, f"ckpt_path={checkpoint}", *QUICK, "logger=wandb")
    _, result = found(checkpoint)
    (run_file,) = checkpoint.parents[1].glob("wandb/offline-run-*/*.wandb")
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_file)]
    printed = subprocess.run(reader, capture_output=True, text=True, timeout=300, check=True).stdout
    records = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    logged = {name: value for record in records if record["type"] == "history" for name, value in record["history"]["item"].items()}
    assert logged["evaluation/accuracy"] == pytest.approx(result["clean"]["accuracy"])
    assert logged["evaluation/linf/worst/0.25"] == pytest.approx(result["robust"]["linf"]["accuracy"]["worst"][0])
    assert logged["evaluation/blur/5"] == pytest.approx(result["corruptions"]["blur"][4])
    pictures = {path.stem.split("_")[0] for path in run_file.parent.glob("files/media/images/evaluation/*.png")}
    assert pictures == {"curves", "examples"}


def test_an_interrupted_evaluation_says_how_to_resume(main, trained, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(robustness_report.robustness, "evaluate", interrupted)
    monkeypatch.setattr(report.console, "quiet", False)
    with pytest.raises(SystemExit) as end:
        main(evaluate, f"ckpt_path={trained.mlp}", *QUICK)
    assert end.value.code == 130
    assert "interrupted: the same command resumes from here" in capsys.readouterr().out


def test_the_table_marks_attacks_on_the_remaining_examples(main, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "last.ckpt").write_bytes(trained.mlp.read_bytes())
    monkeypatch.setattr(report.console, "quiet", False)
    main(evaluate, f"ckpt_path={tmp_path / 'last.ckpt'}", "limit=20", "attack=worst_case", "norms=[linf]", "eps.linf=[0.25,0.5]")
    said = capsys.readouterr().out
    assert "apgd_dlr_targeted *" in said
    assert "apgd_dlr *" not in said
    assert "* tried only on examples" in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_logged_training_is_not_lost(main, trained, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(trained.mlp.read_bytes())
    (tmp_path / "run" / "metrics.csv").write_text("train/loss\n0.5\n")  # Lightning's logger would delete it
    main(evaluate, f"ckpt_path={checkpoint}", "limit=10", "attack=fgm", "norms=[]", "logger=csv")
    path = tmp_path / "run" / "metrics.csv"
    first = list(csv.DictReader(path.open()))
    assert [row["train/loss"] for row in first] == ["0.5", ""]
    assert first[1]["evaluation/accuracy"]
    main(evaluate, f"ckpt_path={checkpoint}", "limit=9", "attack=fgm", "norms=[]", "logger=csv")
    assert list(csv.DictReader(path.open()))[:2] == first
    assert len(list(csv.DictReader(path.open()))) == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ckpt_path=missing"], ["ckpt_path=missing", "no such file"]),
        ([], ["ckpt_path"]),
        (["ckpt_path=null"], ["ckpt_path=null", "a path"]),
        (["data=moons"], ["was trained on inputs of shape [1, 8, 8]", "Moons has [100]"]),
        (["norms=[l3]"], ["unknown norm 'l3'", "l2, linf"]),
        (["norms=l2"], ["norms=l2", "norms=[l2]"]),
        (["norms=[{a: 1}]"], ["norms=[{'a': 1}]", "norms=[l2]"]),
        (["eps.l2=[-1]"], ["eps.l2", ">= 0", "-1"]),
        (["eps.l2=2"], ["eps.l2=2", "a list of numbers"]),
        (["eps.l2=[a]"], ["eps.l2=['a']", "a list of numbers"]),
        (["device=nonsense"], ["device=nonsense is not available"]),
        (["report=opinion"], ["unknown report 'opinion'", "robustness"]),
        (["limit=0"], ["limit=0", ">= 1"]),
        (["batch_size=0"], ["batch_size=0", ">= 1"]),
        (["source=missing"], ["source=missing", "no such file"]),
        (["attack=pgd", "pgd.schedule=step"], ["unknown schedule 'step'"]),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(main, trained, overrides, words):
    given = [] if any(o.startswith("ckpt_path") for o in overrides) or not overrides else [f"ckpt_path={trained.cnn}"]
    message = refused(main, evaluate, *given, *overrides)
    assert all(word in message for word in words), message


def test_a_synthetic_set_is_drawn_as_in_training_unless_its_seed_is_given(main, tmp_path):
    quiet = ("trainer.max_steps=20", "logger=none", "trainer.enable_progress_bar=false", "figures=null", "model=mlp", "model.hidden=[20]")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        metrics = training.train(hydra_compose("train", overrides=[*quiet, "data=moons", "seed=3"]), tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def accuracy(*overrides):
        main(evaluate, f"ckpt_path={checkpoint}", "norms=[]", "attack=fgm", "data=moons", *overrides)
        return max((checkpoint.parents[1] / "evaluation").iterdir(), key=lambda path: path.stat().st_mtime_ns) / "robustness.json"

    assert json.loads(accuracy().read_text())["clean"]["accuracy"] == pytest.approx(metrics["test/accuracy"])
    assert json.loads(accuracy("data.seed=4").read_text())["clean"]["accuracy"] != pytest.approx(metrics["test/accuracy"])


def test_the_report_on_the_direction_says_where_the_run_had_no_vat(main, trained, capsys, monkeypatch):
    monkeypatch.setattr(report.console, "quiet", False)
    main(evaluate, "report=direction", f"ckpt_path={trained.mlp}", "limit=10")
    printed = " ".join(capsys.readouterr().out.split())
    assert "The run had no VAT. This report judges the default direction, at the radius of the monitored LDS." in printed
    assert "Direction random_margin, ε = 2 " in printed


def test_the_report_on_the_direction_says_where_the_runs_vat_is_a_published_one(main, capsys, monkeypatch, tmp_path):
    quiet = ("trainer.max_steps=2", "logger=none", "figures=null", "trainer.enable_progress_bar=false", "test=none", "model=mlp")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        training.train(hydra_compose("train", overrides=[*quiet, "regularizer=vat_published"]), tmp_path / "run")
    monkeypatch.setattr(report.console, "quiet", False)
    main(evaluate, "report=direction", f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", "limit=10")
    printed = " ".join(capsys.readouterr().out.split())
    assert "The r of PublishedVAT cannot be judged. This report judges the default direction" in printed


def test_a_checkpoint_of_other_data_of_the_same_shape_is_refused(main, trained, tmp_path):
    x, y = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32), np.arange(60) % 2
    np.savez(tmp_path / "own.npz", x=x, y=y)
    message = refused(main, evaluate, f"ckpt_path={trained.cnn}", "data=arrays", f"data.train={tmp_path / 'own.npz'}")
    assert "was trained on the classes" in message
    assert "['0', '1']" in message


def test_a_source_of_other_columns_or_another_standardisation_is_refused(main, tmp_path):
    pd = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(90, 3)), columns=["a", "b", "c"]).assign(y=np.arange(90) % 3)
    frame.to_csv(tmp_path / "own.csv", index=False)
    frame[["c", "b", "a", "y"]].to_csv(tmp_path / "reversed.csv", index=False)
    frame.assign(a=10 * frame["a"]).to_csv(tmp_path / "scaled.csv", index=False)
    quick = ("trainer.max_steps=2", "logger=none", "figures=null", "trainer.enable_progress_bar=false", "test=none", "data.num_labeled=30")
    checkpoints = {}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, seed in (("own", 0), ("own", 1), ("reversed", 0), ("scaled", 0)):
            run = tmp_path / f"{name}-{seed}"
            overrides = ("data=arrays", f"data.train={tmp_path / name}.csv", "data.split_seed=0", "model=mlp", f"seed={seed}", *quick)
            training.train(hydra_compose("train", overrides=[*overrides]), run)
            checkpoints[name, seed] = run / "checkpoints" / "last.ckpt"
    given = (f"ckpt_path={checkpoints['own', 0]}", "attack=fgm", "norms=[l2]", "eps.l2=[1]")
    main(evaluate, *given, f"source={checkpoints['own', 1]}")
    _, result = found(checkpoints["own", 0])
    assert "transfer" in result["robust"]["l2"]["accuracy"]
    assert "was trained on the columns" in refused(main, evaluate, *given, f"source={checkpoints['reversed', 0]}")
    assert "standardised as those of" in refused(main, evaluate, *given, f"source={checkpoints['scaled', 0]}")


def test_features_are_standardised_as_in_training_and_changed_files_refused(main, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32), np.arange(90) % 3
    path, more = tmp_path / "own.npz", tmp_path / "more.npz"
    np.savez(path, x=x, y=y)
    np.savez(more, x=(100 * x + 7)[:30], y=y[:30])
    quick = ("trainer.max_steps=2", "logger=none", "figures=null", "trainer.enable_progress_bar=false", "test=none", "data.num_labeled=30")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        training.train(hydra_compose("train", overrides=["data=arrays", f"data.train={path}", "model=mlp", *quick]), tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    given = (f"ckpt_path={checkpoint}", "attack=fgm", "norms=[]")
    main(evaluate, *given)
    (tmp_path / "run" / "evaluation").rename(tmp_path / "first")

    main(evaluate, *given, "data=arrays", f"data.train={path}", f"data.test={more}")
    _, result = found(checkpoint)
    preparation = checkpoints.read_checkpoint(checkpoint)["record"]["preparation"]
    inputs = (torch.tensor((100 * x + 7)[:30]) - torch.tensor(preparation["mean"])) / torch.tensor(preparation["std"])
    with torch.no_grad():
        right = records.load_network(checkpoint)(inputs).argmax(1) == torch.tensor(y[:30])
    assert result["clean"]["accuracy"] == pytest.approx(float(right.double().mean()))

    (tmp_path / "run" / "evaluation").rename(tmp_path / "second")
    for number, sign in enumerate((1, -1), start=1):  # other test examples are evaluated again
        np.savez(more, x=sign * (100 * x + 7)[:30], y=y[:30])
        main(evaluate, *given, "data=arrays", f"data.train={path}", f"data.test={more}")
        assert len(list((tmp_path / "run" / "evaluation").iterdir())) == number

    for changed in ({"data.split_seed": 1}, {"data.test_share": 0.4}):
        words = [f"{key}={value}" for key, value in changed.items()]
        assert "examples to test: these data are its own" in refused(main, evaluate, *given, "data=arrays", f"data.train={path}", *words)
    main(evaluate, *given, "data=arrays", f"data.train={path}", "data.num_labeled=20")  # the same parts, fewer labels

    newer = tmp_path / "newer.npz"
    np.savez(newer, x=np.concatenate([x, x + 1]), y=np.tile(y, 2))
    with pytest.warns(UserWarning, match="have the values of examples that") as warned:
        main(evaluate, *given, "data=arrays", f"data.train={newer}", "data.test_share=0.5", "limit=10")
    (said,) = [str(one.message) for one in warned if "examples to test" in str(one.message)]
    tested = records.data_of(checkpoints.read_checkpoint(checkpoint), checkpoint)
    tested.setup()
    seen = {row.tobytes() for row in x[tested.split.unlabeled]}
    again = Arrays(train=str(newer), test_share=0.5, split_seed=tested.split_seed)
    again.setup()
    rows = np.concatenate([x, x + 1])[again.split.test]
    assert said.startswith(
        f"{sum(row.tobytes() in seen for row in rows)} of {len(rows)} examples to test have the values of examples that "
    )

    np.savez(path, x=-x, y=y)
    with pytest.warns(UserWarning, match=r"were not compared with those that .* was trained on \(they have changed since\)"):
        main(evaluate, *given, "data=arrays", f"data.train={newer}", "limit=10")
    path.rename(tmp_path / "elsewhere.npz")
    with pytest.warns(UserWarning, match="were not compared with those that .* there is no such file"):
        main(evaluate, *given, "data=arrays", f"data.train={newer}", "limit=10")
    assert "was trained on it. Start in the folder where the training was started" in refused(main, evaluate, *given)
    np.savez(path, x=-x, y=y)
    assert "the files have changed since" in refused(main, evaluate, *given)
    np.savez(path, x=x[1:], y=y[1:])  # without one row the split differs, so training examples would be tested
    assert "the files have changed since" in refused(main, evaluate, *given)


def test_a_truncated_checkpoint_is_refused(main, trained, tmp_path):
    (tmp_path / "half.ckpt").write_bytes(trained.cnn.read_bytes()[:5000])
    assert "truncated" in refused(main, evaluate, f"ckpt_path={tmp_path / 'half.ckpt'}")


def hostile(checkpoint, path, **nodes):
    """A copy of a checkpoint whose configuration has other nodes."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["record"]["config"] |= nodes
    torch.save(saved, path)
    return f"ckpt_path={path}"


DIGITS = {"_target_": "vat.data.sets.digits.Digits"}
MLP = {"_target_": "vat.models.mlp.MLP", "hidden": [32]}
VAT = {"_target_": "vat.regularizers.vat.VAT", "eps": 1.0}


@pytest.mark.parametrize(("name", "nested"), [("os.mkdir", False), ("vat.data.files.download.os.mkdir", True), ("interpolated", True)])
def test_a_checkpoint_cannot_choose_what_is_called(main, trained, tmp_path, name, nested):
    called, path = tmp_path / "called", tmp_path / "evil.ckpt"
    evil = {"_target_": name, "path": str(called)}
    if name == "interpolated":
        evil = f"${{oc.create:{{_target_: os.mkdir, path: {called}}}}}"

    def words(entry, *overrides, **nodes):
        nodes = {key: node | {"extra": [{"inner": evil}]} if nested else evil for key, node in nodes.items()}
        nodes = {key: [node] if key == "regularizers" else node for key, node in nodes.items()}
        message = refused(main, entry, hostile(trained.mlp, path, **nodes), *overrides)
        assert not called.exists()
        return message

    expected = "could stand for any _target_" if name == "interpolated" else f"_target_={name} is none of this project's"
    assert expected in words(evaluate, model=MLP)
    assert expected in words(evaluate, data=DIGITS)
    assert expected in words(export, model=MLP)
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 1, 8, 8)))
    assert expected in words(predict, f"input={tmp_path / 'new.npz'}", model=MLP)
    assert expected in words(evaluate, "report=direction", regularizers=VAT)
    source = hostile(trained.mlp, path, model=evil).replace("ckpt_path", "source")
    assert expected in refused(main, evaluate, f"ckpt_path={trained.mlp}", source)
    assert not called.exists()


def test_what_is_no_data_set_is_not_made_as_one(main, trained, tmp_path):
    for target in ("pytorch_lightning.loggers.CSVLogger", "vat.data.nowhere.Data"):
        node = {"_target_": target, "save_dir": str(tmp_path / "made")}
        assert f"was trained on {target}, which" in refused(main, evaluate, hostile(trained.mlp, tmp_path / "a.ckpt", data=node))
    assert not (tmp_path / "made").exists()


THEIRS = """
from torch import nn

from vat.data.sets.digits import Digits
from vat.directions import margin

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

class Numbers(Digits):
    pass

def own_margin(*inputs, **options):
    return margin(*inputs, **options)
"""


@pytest.mark.parametrize("read", ["input", "ckpt_path"])
def test_predictions_are_not_written_over_what_is_read(main, trained, tmp_path, read):
    path = tmp_path / "new.npz"
    np.savez(path, x=np.zeros((2, 1, 8, 8)))
    files = {"input": path, "ckpt_path": trained.mlp}
    before = files[read].read_bytes()
    output = f"output={files[read].parent / '.' / files[read].name}"
    assert "is also an input file" in refused(main, predict, f"ckpt_path={trained.mlp}", f"input={path}", output)
    assert files[read].read_bytes() == before


def test_predictions_hold_no_formula_and_no_command_of_a_terminal(main, trained, tmp_path):
    names = [f"=cmd({n})" if n % 2 else f"\x1b[{n}J" for n in range(10)]
    saved = torch.load(trained.mlp, weights_only=True)
    saved["record"]["class_names"] = names
    torch.save(saved, tmp_path / "a.ckpt")
    np.savez(tmp_path / "new.npz", x=np.random.default_rng(0).random((200, 1, 8, 8), "float32"))
    main(predict, f"ckpt_path={tmp_path / 'a.ckpt'}", f"input={tmp_path / 'new.npz'}")
    predicted = {row["prediction"] for row in lines(tmp_path / "predictions.csv")}
    assert predicted <= {f"'=cmd({n})" if n % 2 else rf"\x1b[{n}J" for n in range(10)}


def test_what_has_no_finite_output_is_not_predicted(main, trained, tmp_path):
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 1, 8, 8), "float32"))
    given = (f"input={tmp_path / 'new.npz'}", f"output={tmp_path / 'out.csv'}")
    saved = torch.load(trained.mlp, weights_only=True)
    last = next(name for name in reversed(saved["state_dict"]) if name.startswith("network.") and name.endswith(".weight"))
    for value, said in ((float("nan"), "is not finite, so its training diverged"), (3e38, "the network's output for 0 is not finite")):
        saved["state_dict"][last].fill_(value)
        torch.save(saved, tmp_path / "a.ckpt")
        assert said in refused(main, predict, f"ckpt_path={tmp_path / 'a.ckpt'}", *given)
    assert not (tmp_path / "out.csv").exists()


def test_a_pickle_in_a_record_is_run_by_no_command(main, trained, tmp_path):
    """Each once ran a shell command: load_checkpoint, a method of a trusted package, takes an address that contains the data."""
    command = f"touch {tmp_path / 'called'}".encode()
    pickled = b"cposix\nsystem\n(X" + len(command).to_bytes(4, "little") + command + b"tR."
    arguments = [None, f"data:;base64,{base64.b64encode(pickled).decode()}", False]
    load = {"_target_": "pytorch_lightning.strategies.Strategy.load_checkpoint", "_args_": arguments}
    exploit = {"_target_": "torch.nn.Sequential", "_args_": [load]}
    path = tmp_path / "evil.ckpt"
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 1, 8, 8), "float32"))
    ours = f"ckpt_path={trained.mlp}"
    for node in (exploit, {"_target_": "vat.models.mlp.MLP", "hidden": exploit}, {"_target_": "vat.models.mlp.MLP", "x": [exploit]}):
        of_model = hostile(trained.mlp, path, model=node)
        said = [refused(main, evaluate, of_model), refused(main, export, of_model)]
        said.append(refused(main, predict, of_model, f"input={tmp_path / 'new.npz'}"))
        said.append(refused(main, evaluate, ours, of_model.replace("ckpt_path", "source")))
        said.append(refused(main, evaluate, hostile(trained.mlp, path, data=node)))
        said.append(refused(main, evaluate, "report=direction", hostile(trained.mlp, path, regularizers=[node])))
        assert all("is none of this project's" in message and "evil.ckpt" in message for message in said)
    assert not (tmp_path / "called").exists()


def test_a_seed_of_a_checkpoint_is_a_number_or_nothing(main, trained, tmp_path):
    """It enters the user's own data node, and Hydra calls everything that this node names, interpolated or not."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("_target_: vat.data.sets.digits.Digits\nseed: 0\n")
    evil = f"${{oc.create:{{_target_: os.mkdir, path: {tmp_path / 'called'}}}}}"
    checkpoint = hostile(trained.mlp, tmp_path / "a.ckpt", data={"_target_": "vat.data.sets.digits.Digits", "seed": evil})
    main(evaluate, checkpoint, "data=mine", *QUICK)
    assert not (tmp_path / "called").exists()


def test_an_input_larger_than_memory_is_refused(main, trained, tmp_path):
    saved = torch.load(trained.mlp, weights_only=True)
    saved["record"]["input_shape"] = [3, 50_000, 50_000]  # a network that pools would accept it
    torch.save(saved, tmp_path / "a.ckpt")
    assert "input_shape is [3, 50000, 50000]" in refused(main, export, f"ckpt_path={tmp_path / 'a.ckpt'}")


def test_nothing_is_downloaded_into_a_folder_that_a_checkpoint_names(main, trained, tmp_path):
    node = {"_target_": "vat.data.sets.mnist.MNIST", "data_dir": str(tmp_path / "theirs")}
    assert "nothing is downloaded into a folder that a checkpoint names" in refused(
        main, evaluate, hostile(trained.mlp, tmp_path / "a.ckpt", data=node)
    )
    assert not (tmp_path / "theirs").exists()


def test_those_who_allow_a_package_evaluate_export_and_predict_with_it(main, tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    quiet = ("trainer.max_steps=2", "data.steps_per_epoch=2", "logger=none", "trainer.enable_progress_bar=false", "test=none")
    own = ("model=custom", "model._target_=their_package.Net")
    monkeypatch.setattr(report.console, "quiet", True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        training.train(hydra_compose("train", overrides=[*quiet, *own]), tmp_path / "run")
    trained = tmp_path / "run" / "checkpoints" / "last.ckpt"
    regularizers = [VAT | {"direction": {"_target_": "their_package.own_margin", "_partial_": True}}]
    checkpoint = hostile(trained, trained.with_name("own.ckpt"), data={"_target_": "their_package.Numbers"}, regularizers=regularizers)
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 1, 8, 8)))
    for entry, *overrides in ((evaluate, "report=direction", "limit=5"), (export,), (predict, f"input={tmp_path / 'new.npz'}")):
        assert "allow_targets=[their_package]" in refused(main, entry, checkpoint, *overrides)
        main(entry, checkpoint, *overrides, "allow_targets=[their_package]")
    assert json.loads((tmp_path / "run" / "evaluation" / "direction.json").read_text())["examples"] == 5
    assert trained.with_name("own.safetensors").exists()
    assert len(lines(tmp_path / "predictions.csv")) == 2


# --------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("to", ["safetensors", "torch_export", pytest.param("onnx", marks=pytest.mark.long)])
def test_an_export_predicts_what_the_checkpoint_does(trained, tmp_path, to):
    for package in exporting.FORMATS[to].needs:
        pytest.importorskip(package)
    path, told = exporting.export(trained.cnn, to, tmp_path / f"exported{exporting.FORMATS[to].suffix}")
    predicts, text = exporting.FORMATS[to].load(path)
    x = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(predicts(x), records.load_network(trained.cnn)(x), rtol=1e-3, atol=1e-4)
    assert json.loads(text) == json.loads(json.dumps(told))
    assert exporting.input_lines(told).splitlines() == [
        f"input: float32 of shape (batch, 1, 8, 8), {told['input']['unit']}",
        "prepare inputs as the file's description says: mean, std",
    ]
    assert told["class_names"] == [str(digit) for digit in range(10)]
    assert told["input"]["shape"] == ["batch", 1, 8, 8]
    assert told["input"]["bounds"][0] < 0 < told["input"]["bounds"][1]


def test_bytes_are_no_input_of_a_network_trained_on_other_numbers():
    record = {"config": {"data": {}}, "unit": "units of the data file", "preparation": None, "bounds": None}
    numbers = torch.tensor([[0, 255]])
    with pytest.raises(ValueError, match=r"holds bytes\. The network was trained on numbers in units of the data file"):
        predicting.prepared(numbers.to(torch.uint8), record, Path("new.npz"))
    standardized = {"unit": "standard deviations of each feature", "preparation": {"mean": [0.0, 100.0], "std": [1.0, 10.0]}}
    with pytest.raises(ValueError, match=r"holds bytes\. The network was trained on numbers in standard deviations of each feature"):
        predicting.prepared(numbers.to(torch.uint8), record | standardized, Path("new.npz"))
    assert torch.equal(predicting.prepared(numbers.float(), record, Path("new.npz")), numbers.float())


def test_an_export_that_predicts_otherwise_is_refused(main, trained, tmp_path, monkeypatch):
    def load(path):
        predicts, text = exporting.load_torch_export(path)
        return (lambda x: predicts(x) + 0.1), text

    monkeypatch.setitem(exporting.FORMATS, "torch_export", exporting.FORMATS["torch_export"]._replace(load=load))
    message = refused(main, export, f"ckpt_path={trained.mlp}", "format=torch_export", f"output={tmp_path / 'wrong.pt2'}")
    assert "predicts differently" in message
    assert not (tmp_path / "wrong.pt2").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["output=out.txt"], ["output=out.txt", ".safetensors"]),
        (["format=pickle"], ["unknown format 'pickle'", "safetensors, torch_export, onnx"]),
        (["ckpt_path=missing"], ["no such file"]),
        (["ckpt_path=null"], ["ckpt_path=null: must be a path"]),
    ],
    ids=str,
)
def test_an_export_refuses_in_one_line(main, trained, overrides, words):
    given = [] if overrides[0].startswith("ckpt_path") else [f"ckpt_path={trained.mlp}"]
    message = refused(main, export, *given, *overrides)
    assert all(word in message for word in words)


def test_a_format_whose_package_is_absent_says_what_to_install(main, trained, monkeypatch):
    monkeypatch.setitem(exporting.FORMATS, "onnx", exporting.FORMATS["onnx"]._replace(needs=("nonesuch_package",)))
    assert "pip install nonesuch_package" in refused(main, export, f"ckpt_path={trained.mlp}", "format=onnx")


# -------------------------------------------------------------------------------------------------------------- predict


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def levels():
    """The digits' grey levels in [0, 1], and the network's inputs for them."""
    data = instantiate({"_target_": "vat.data.sets.digits.Digits"})
    data.setup()
    mean, std = data.preparation["mean"], data.preparation["std"]
    rows = data.split.test[:30]
    return (data.x[rows] * std + mean).numpy(), data.x[rows]


def test_arrays_are_predicted_as_the_network_does(main, trained, levels, tmp_path):
    raw, x = levels
    np.savez(tmp_path / "new.npz", x=raw)
    main(predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'new.npz'}", "batch_size=7")
    got = lines(tmp_path / "predictions.csv")
    with torch.no_grad():
        chance, chosen = records.load_network(trained.mlp)(x).softmax(1).max(1)
    assert [line["prediction"] for line in got] == [str(c) for c in chosen.tolist()]
    assert [float(line["confidence"]) for line in got] == pytest.approx(chance.tolist(), abs=1e-5)
    assert [line["example"] for line in got] == [str(row) for row in range(30)]


def test_a_folder_of_images_is_predicted_by_name(main, trained, levels, tmp_path):
    from PIL import Image

    raw, _ = levels
    for number in range(3):
        Image.fromarray((raw[number, 0] * 255).round().astype(np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    main(predict, f"ckpt_path={trained.mlp}", f"input={tmp_path}", "output=out/images.csv")
    got = lines(tmp_path / "out" / "images.csv")
    assert [Path(line["example"]).name for line in got] == ["0.png", "1.png", "2.png"]
    np.savez(tmp_path / "same.npz", x=(raw[:3] * 255).round().astype(np.uint8))
    main(predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'same.npz'}")
    assert [line["prediction"] for line in lines(tmp_path / "predictions.csv")] == [line["prediction"] for line in got]


def test_the_images_of_a_folder_are_those_that_training_would_find(main, trained, tmp_path):
    from PIL import Image

    name = os.fsdecode(b"gr\xfcn.png")  # not UTF-8
    for path in (tmp_path / "new" / "1.jfif", tmp_path / "elsewhere" / name, tmp_path / "new" / ".hidden" / "2.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path, "png")
    (tmp_path / "new" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "new" / "linked" / "circle").symlink_to(tmp_path / "new")
    (tmp_path / "new" / "3.heic").write_bytes(b"of another format")
    with pytest.warns(UserWarning, match=r"left out 1 files ending in \.heic. To use them, convert them"):
        main(predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'new'}")
    _, one, two = (tmp_path / "predictions.csv").read_bytes().splitlines()
    assert one.startswith(os.fsencode(tmp_path / "new" / "1.jfif,"))
    assert two.startswith(os.fsencode(tmp_path / "new" / "linked" / f"{name},"))


@pytest.mark.filterwarnings("ignore:.*seems to be the label")
def test_rows_of_a_table_are_standardised_as_in_training(main, tmp_path, monkeypatch):
    pd = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    y = np.arange(80) % 2
    frame = pd.DataFrame(
        {"a": 1000 + 50 * y + generator.normal(0, 5, 80), "b": generator.normal(0, 1e-3, 80), "y": np.where(y, "up", "down")}
    )
    frame.to_csv(tmp_path / "train.csv", index=False)
    quiet = ("trainer.max_steps=60", "data.steps_per_epoch=60", "logger=none", "trainer.enable_progress_bar=false", "test=none")
    own = ("data=arrays", f"data.train={tmp_path / 'train.csv'}", "model=mlp", "model.hidden=[8]", "regularizer=none", "optimizer.lr=0.01")
    monkeypatch.setattr(report.console, "quiet", True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        training.train(hydra_compose("train", overrides=[*quiet, *own]), tmp_path / "run")
    frame[["b", "y", "a"]].to_csv(tmp_path / "new.csv", index=False)  # another order, and labels are allowed
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    main(predict, f"ckpt_path={checkpoint}", f"input={tmp_path / 'new.csv'}")
    got = [line["prediction"] for line in lines(tmp_path / "predictions.csv")]
    assert np.mean(np.array(got) == frame["y"].to_numpy()) > 0.95
    frame[["a"]].to_csv(tmp_path / "less.csv", index=False)
    assert "no column 'b'" in refused(main, predict, f"ckpt_path={checkpoint}", f"input={tmp_path / 'less.csv'}", "overwrite=true")


def test_what_cannot_be_predicted_is_refused_in_one_line(main, trained, tmp_path):
    def message(**arrays):
        np.savez(tmp_path / "bad.npz", **arrays)
        return refused(main, predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'bad.npz'}")

    assert "of shape (1, 8, 8), which the network takes, got (1, 9, 9)" in message(x=np.zeros((2, 1, 9, 9)))
    assert "inputs must be in [" in message(x=np.full((2, 1, 8, 8), 255.0))
    assert "has no array 'x'" in message(z=np.zeros((2, 1, 8, 8)))
    assert "no such file or folder" in refused(main, predict, f"ckpt_path={trained.mlp}", "input=nowhere")
    assert "input=null: must be a path" in refused(main, predict, f"ckpt_path={trained.mlp}", "input=null")
    given = f"ckpt_path={trained.mlp}", f"input={tmp_path / 'bad.npz'}"
    assert f"output={tmp_path} is a folder. Name another." in refused(main, predict, *given, f"output={tmp_path}")
    for value in ("0", "half", "null"):
        assert ">= 1" in refused(main, predict, *given, f"batch_size={value}")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(main, predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'empty'}")
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    assert "broken.png cannot be read" in refused(main, predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'broken.png'}")
    (tmp_path / "photo.heic").write_bytes(b"of another format")
    message = refused(main, predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'photo.heic'}")
    assert "photo.heic: its name must end in .png, .jpg," in message
    assert message.endswith(".npz, .csv, .parquet: convert it to one of these")
    from PIL import Image

    (tmp_path / "some").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "some" / "a.png")
    (tmp_path / "some" / "b.png").write_bytes(b"no image at all")
    assert "b.png cannot be read" in refused(main, predict, f"ckpt_path={trained.mlp}", f"input={tmp_path / 'some'}", "batch_size=1")
    assert not list(tmp_path.glob("*predictions.csv"))


def test_features_standardised_by_other_moments_are_refused():
    data, trained = SimpleNamespace(preparation={"mean": 1.0, "std": 2.0}), {"preparation": {"mean": 1.0, "std": 3.0}}
    with pytest.raises(ValueError, match="prepared otherwise"):
        subject.refuse_other_preparation(trained, data, Path("x"))
    subject.refuse_other_preparation({"preparation": data.preparation}, data, Path("x"))


def test_features_far_from_zero_are_predicted_as_they_were_trained_on():
    record = {
        "config": {"data": {}},
        "unit": "standard deviations of each feature",
        "preparation": {"mean": [1e7 + 3.3], "std": [2.0]},
        "bounds": None,
    }
    x = torch.tensor([[1e7], [1e7 + 7]])
    torch.testing.assert_close(predicting.prepared(x, record, Path("x")), torch.tensor([[-1.65], [1.85]]), rtol=0, atol=1e-6)


def test_the_radii_of_both_norms_follow_the_radius_of_lds():
    data = SimpleNamespace(lds_eps=2.0, input_shape=(1, 8, 8))
    assert robustness_report.default_radii("l2", data) == [0.5, 1, 2, 4]
    assert robustness_report.default_radii("linf", data) == [
        0.0625,
        0.125,
        0.25,
        0.5,
    ]  # the same L2 length if every pixel changes


def test_images_with_their_channels_last_are_predicted():
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(predicting._arranged(x.permute(0, 2, 3, 1), (3, 5, 5), Path("x")), x)


def test_a_checkpoint_that_was_written_again_is_evaluated_again(main, trained, tmp_path):
    path = tmp_path / "own" / "last.ckpt"
    path.parent.mkdir()
    saved = torch.load(trained.mlp, weights_only=True)
    for number in (1, 2):
        name = next(key for key, value in saved["state_dict"].items() if torch.is_tensor(value) and value.ndim == 2)
        saved["state_dict"][name] = number * saved["state_dict"][name]
        torch.save(saved, path)
        main(evaluate, f"ckpt_path={path}", "limit=10", "attack=fgm", "norms=[]")
        assert len(list((path.parent / "evaluation").iterdir())) == number
