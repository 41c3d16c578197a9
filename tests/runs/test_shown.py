"""The output of a run: its bar, complete paths, and a page that links its evaluations."""

import re

from vat.runs import report


def test_the_bar_shows_epochs_loss_and_validation_error(job, monkeypatch):
    shown = []
    real = report.Progress._update_metrics

    def noted(self, trainer, pl_module):
        real(self, trainer, pl_module)
        shown.append((self._get_train_description(trainer.current_epoch).split(), self.get_metrics(trainer, pl_module)))

    monkeypatch.setattr(report.Progress, "_update_metrics", noted)
    run = job("trainer.enable_progress_bar=true", "trainer.max_steps=12", "trainer.accumulate_grad_batches=1", "regularizer=none")
    assert {tuple(description) for description, _ in shown} == {("Epoch", "1/3"), ("Epoch", "2/3"), ("Epoch", "3/3")}
    first, last = shown[0][1], shown[-1][1]
    assert set(first) == {"loss"}
    assert 1.5 < float(first["loss"]) < 3.5  # ten classes: about log 10 before training
    assert set(last) == {"loss", "val error"}
    assert re.fullmatch(r"\d+\.\d %", last["val error"])
    assert run.metrics["val/examples"] == 200


def test_paths_are_complete_in_a_narrow_terminal(job, monkeypatch, capsys):
    monkeypatch.setattr(report.console, "width", 80)
    report.console.quiet = False
    run = job(name="a-folder-with-a-name-that-is-so-long-that-a-table-in-a-terminal-of-eighty-columns-would-break-it")
    lines = capsys.readouterr().out.splitlines()
    for name, file in {"page": "index.html", "checkpoint": "checkpoints/last.ckpt", "metrics": "metrics.json"}.items():
        assert f"{name}: {run.folder / file}" in lines


def test_evaluations_are_linked_from_the_page_of_the_run(job):
    run = job(name="run")
    page = run.folder / "index.html"
    before = page.read_text()
    report.link_evaluations(run.folder)
    assert page.read_text() == before
    for name in ("robustness-1/curves.png", "direction.json"):
        path = run.folder / "evaluation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for _ in range(2):  # a second evaluation does not list the first twice
        report.link_evaluations(run.folder)
        for name in ("robustness-1/curves.png", "direction.json"):
            assert page.read_text().count(f'<a href="evaluation/{name}">') == 1
    assert "<h2>Configuration</h2>" in page.read_text()
    report.link_evaluations(run.folder / "elsewhere")  # a checkpoint without a page
