"""The figures of a run, its page and its history."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from vat import VAT
from vat.data.sets.synthetic import Moons
from vat.lightning import figures
from vat.lightning.classifier import Classifier
from vat.lightning.history import COUNTS, SECONDS, read, rewind, seconds_of
from vat.runs import report

MOONS = ["data=moons", "model=mlp", "model.hidden=[8]"]
ALWAYS = {"kl", "confusion", "class_error", "reliability", "curves"}


def drawn(folder):
    return {path.relative_to(folder / "figures").as_posix().removesuffix(".png") for path in (folder / "figures").rglob("*.png")}


@pytest.fixture
def fast(monkeypatch):
    """Skip the layout: it takes most of the time, and these tests do not need it."""
    from matplotlib.figure import Figure

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: self.set_layout_engine("none") or save(self, path, dpi=20))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("overrides", "own"),
    [(MOONS, {"plane"}), ([], {"perturbations"}), (["regularizer=none"], {"perturbations"})],
    ids=["moons", "digits", "no VAT"],
)
def test_every_figure_is_drawn_at_the_end(job, overrides, own):
    ran = job("figures=0", *overrides)
    assert drawn(ran.folder) == ALWAYS | own
    assert drawn(ran.folder) <= figures.CAPTIONS.keys()


def test_a_figure_that_fails_costs_the_run_nothing_else(job, monkeypatch):
    monkeypatch.setattr(figures.plots, "reliability_figure", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="figures are missing, the run continues: ZeroDivisionError: division by zero"):
        ran = job("figures=0", *MOONS)
    assert "test/accuracy" in ran.metrics
    assert (ran.folder / report.PAGE).is_file()


def test_the_random_control_is_not_drawn_as_vat(job, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "draw", lambda network, data, part, vat: seen.append(vat) or {})
    job("figures=0", "regularizer=random_perturbation", *MOONS, "trainer.max_steps=1", "data.steps_per_epoch=1")
    assert [type(vat) for vat in seen] == [VAT]


@pytest.mark.usefixtures("fast")
def test_figures_at_an_interval_are_drawn_at_the_validation_after_it(job):
    ran = job("figures=4", *MOONS, "trainer.max_steps=9", "trainer.val_check_interval=1", "data.steps_per_epoch=3", "test=none")
    assert {name.split("/")[0] for name in drawn(ran.folder) if "/" in name} == {"step-000004", "step-000008"}
    assert drawn(ran.folder) >= ALWAYS


@pytest.mark.usefixtures("fast")
def test_drawing_changes_nothing(job, differences):
    same = [*MOONS, "trainer.max_steps=6", "data.steps_per_epoch=2", "model.dropout=0.5"]
    one, other = job("figures=null", *same, name="one"), job("figures=3", *same, name="other")
    states = [torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (one, other)]
    assert differences(*states) == []
    assert {k: v for k, v in one.metrics.items() if k != "seconds"} == {k: v for k, v in other.metrics.items() if k != "seconds"}
    assert not (one.folder / "figures").exists()


def test_figures_use_the_averaged_weights_as_the_evaluation_does(job, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "draw", lambda network, *_: seen.append(next(network.parameters()).detach().clone()) or {})
    evaluated = []
    step = Classifier.validation_step

    def noting(self, batch, batch_idx):
        evaluated.append(next(self.network.parameters()).detach().clone())
        step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "validation_step", noting)
    job("figures=2", *MOONS, "ema=0.9", "trainer.max_steps=4", "data.steps_per_epoch=2", "test=none")
    assert len(seen) == len(evaluated) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen, evaluated, strict=True))


def test_negative_intervals_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps must be >= 0, got -1"):
        figures.Figures(tmp_path, every_n_steps=-1)


def test_r_of_the_figures_is_the_regularizers(monkeypatch, compose):
    from hydra.utils import instantiate

    data = instantiate(compose("data=moons").data, _convert_="all")
    data.setup()
    network = torch.nn.Linear(100, 2).eval()
    shown = {}
    monkeypatch.setattr(figures.plots, "kl_figure", lambda kl, chance, eps: shown.update(kl=kl, chance=chance, eps=eps))
    figures.draw(network, data, "test", VAT(0.7, direction="exact"))
    assert shown["eps"] == 0.7
    assert shown["kl"].shape == shown["chance"].shape == (figures.MOST_PERTURBED,)
    assert shown["kl"].mean() > 3 * shown["chance"].mean()  # a linear network uses one of 100 dimensions


@pytest.mark.usefixtures("fast")
def test_tensorboard_gets_the_figures(job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ran = job("figures=0", *MOONS, "logger=tensorboard")
    tags = set()
    for path in ran.folder.glob("events.*"):
        tags |= set(EventAccumulator(str(path)).Reload().Tags()["images"])
    assert tags == {f"figures/{name}" for name in ALWAYS | {"plane"}}


# --------------------------------------------------------------------------------------------------------------- history


def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(job):
    steps = [*MOONS, "data.steps_per_epoch=2"]
    whole = job(*steps, "trainer.max_steps=6", "logger=csv", "trainer.log_every_n_steps=1", name="whole")
    half = job(*steps, "trainer.max_steps=6", "logger=csv", "trainer.log_every_n_steps=1", name="half")
    path = half.folder / "history.jsonl"
    records = read(whole.folder / "history.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6]
    timeless, other = ([{**record, "seconds": 0} for record in read(folder / "history.jsonl")] for folder in (whole.folder, half.folder))
    assert timeless == other
    assert 0 < records[0]["seconds"] < records[1]["seconds"] < whole.metrics["seconds"]
    assert records[-1]["val/error"] == pytest.approx(1 - whole.metrics["val/accuracy"])
    assert {"train/vat", "train/vat/lds", "val/cross_entropy"} <= records[0].keys()
    rewind(half.folder, {"global_step": 4})  # a checkpoint without these steps
    assert [record["step"] for record in read(path)] == [2, 4]


def test_the_seconds_of_a_resumed_run_include_those_before(job):
    steps = [*MOONS, "data.steps_per_epoch=2"]
    run = job(*steps, "trainer.max_steps=4", name="run")
    saved = torch.load(run.checkpoint, weights_only=True)
    assert 0 < seconds_of(saved) < run.metrics["seconds"]
    saved[COUNTS][SECONDS] = 1000.0
    torch.save(saved, run.checkpoint)
    resumed = job(*steps, "trainer.max_steps=4", f"ckpt_path={run.checkpoint}", name="run")
    assert 1000 < resumed.metrics["seconds"] < 1000 + 600
    assert seconds_of({"global_step": 4}) == 0


def test_the_error_of_the_last_validation_is_logged_though_there_was_none_in_training(job):
    found = job(*MOONS, "data.steps_per_epoch=9", "trainer.max_steps=3", "logger=csv")
    with (found.folder / "metrics.csv").open() as file:
        errors = [float(row["val/error"]) for row in csv.DictReader(file) if row.get("val/error")]
    assert errors == [pytest.approx(1 - found.metrics["val/accuracy"])]
    assert read(found.folder / "history.jsonl") == []


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    (tmp_path / "h").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read(tmp_path / "h") == [{"step": 1}, {"step": 2}]
    assert read(tmp_path / "absent") == []


# ------------------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collects what a browser would fetch, show and nest."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.text, self.images = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += tag == "img"
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page_of(job, fast):
    ran = job("figures=0", *MOONS, "+note='<b>&'", "logger=csv", "trainer.log_every_n_steps=1")
    return ran, (ran.folder / report.PAGE).read_text()


def test_the_page_of_a_run_has_figures_settings_results_and_origin(page_of):
    ran, text = page_of
    page = Page(text)
    assert page.open == []
    assert page.images == len(ALWAYS | {"plane"})
    outside = [source for source in page.sources if not source.startswith("data:image/png;base64,")]
    assert all((ran.folder / source).is_file() for source in outside)
    assert "http" not in text.replace("data:", "").split("<pre>")[0]
    shown = "".join(page.text)
    record = torch.load(ran.checkpoint, weights_only=True)["record"]
    for said in (record["split"], record["environment"]["git"], record["environment"]["torch"], "note: <b>&", "class 0, class 1"):
        assert said in shown
    assert f"{100 * ran.metrics['test/accuracy']:.2f} %" in shown
    moons = Moons(seed=0)
    moons.setup()
    pool, labeled, validation, test = (
        f"{len(rows):,}" for rows in (moons.split.unlabeled, moons.split.labeled, moons.split.validation, moons.split.test)
    )
    assert f"{pool} for training, {labeled} of them labelled; {validation} for validation, {test} for the test" in shown


@pytest.mark.long
def test_the_page_of_a_run_opens_in_a_browser(page_of, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    ran, _ = page_of
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,6000")
    address = (ran.folder / report.PAGE).as_uri()
    probe = tmp_path / "probe.html"  # reports whether the browser decoded every picture
    script = "document.title = [...document.images].every(i => i.complete && i.naturalWidth > 50) + ' ' + document.images.length"
    probe.write_text((ran.folder / report.PAGE).read_text().replace("</body>", f"<script>onload = () => {{ {script} }}</script></body>"))
    dom = subprocess.run([browser, *options, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"<title>true {len(ALWAYS | {'plane'})}</title>" in dom
    picture = tmp_path / "page.png"
    subprocess.run([browser, *options, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True)
    pixels = imread(picture)
    assert pixels.shape[:2] == (6000, 1200)
    assert len({tuple(row) for row in pixels[::7, ::7, :3].reshape(-1, 3).round(1).tolist()}) > 30  # figures, not a blank page


def test_the_environment_is_in_the_folder_and_the_checkpoint(job):
    ran = job()
    written = json.loads((ran.folder / "environment.json").read_text())
    record = torch.load(ran.checkpoint, weights_only=True)["record"]
    assert re.fullmatch(r"[0-9a-f]{8}", written.pop("settings"))
    assert written == {**record["environment"], "data": record["data"]}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert written["git"].removesuffix(" + changes") == head
    assert written["torch"].startswith(torch.__version__.split("+")[0])
