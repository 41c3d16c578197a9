"""Tables: settings are chosen on validation, interrupted tables resume, and the summary is correct."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vat.runs import tables


@pytest.fixture
def study():
    methods = (tables.Method("none", ("regularizer=none",)), tables.Method("VAT", ("regularizer=vat",), "vat.eps", (1, 2), "20.1"))
    return tables.Study(methods, ("data=digits",), tuning_seeds=range(100, 102), seeds=range(3))


def leave(folder, *, lr=1.0, **metrics):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"optimizer:\n  lr: {lr}\nvat:\n  eps: 2.0\nseed: {folder.name}\n")
    (folder / "metrics.json").write_text(json.dumps({name.replace("__", "/"): value for name, value in metrics.items()}))


def pretend_training(monkeypatch, commands, accuracy=lambda place, seed: 0.5):
    def run(command, **_):
        commands.append(command)
        where = Path(next(word for word in command if word.startswith("hydra.sweep.dir=")).split("=")[1].strip("'"))
        seeds = next(word for word in command if word.startswith("seed=")).split("=")[1].split(",")
        for seed in map(int, seeds):
            value = accuracy(where.name, seed)
            leave(where / str(seed), val__accuracy=value, val__cross_entropy=0.1, test__accuracy=value, test__lds=0.2, seconds=1)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(tables.subprocess, "run", run)


def test_the_value_with_the_best_mean_validation_accuracy_is_chosen(study, tmp_path):
    for value, accuracies in ((1, (0.9, 0.7)), (2, (0.85, 0.81))):
        for seed, accuracy in zip(study.tuning_seeds, accuracies, strict=True):
            # the test, had it been read, would choose otherwise
            leave(tmp_path / f"VAT-{value}" / str(seed), val__accuracy=accuracy, val__cross_entropy=0.1, test__accuracy=1 / value)
    assert tables.choose(study.methods[1], tmp_path, study.tuning_seeds) == 2
    assert tables.choose(study.methods[0], tmp_path, study.tuning_seeds) is None


def test_only_what_is_missing_is_trained(study, tmp_path, monkeypatch):
    commands = []
    pretend_training(monkeypatch, commands)
    leave(tmp_path / "VAT-2" / "1")
    blocks = [(study.methods[1], study.seeds, (1, 2), ("test=none",))]
    tables.run(study, blocks, tmp_path, jobs=1)
    seeds = {next(w for w in c if w.startswith("vat.eps=")): next(w for w in c if w.startswith("seed=")) for c in commands}
    assert seeds == {"vat.eps=1": "seed=0,1,2", "vat.eps=2": "seed=0,2"}
    assert all({"-m", "data=digits", "regularizer=vat", "test=none"} <= set(command) for command in commands)
    tables.run(study, blocks, tmp_path, jobs=1)
    assert len(commands) == 2


def test_jobs_find_the_users_packages_and_folders_of_any_name(study, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(tables.subprocess, "run", lambda command, env, **_: given.append((command, env)))
    monkeypatch.setenv("PYTHONPATH", "theirs")
    with pytest.raises(SystemExit):
        tables.run(study, [(study.methods[0], range(1), (None,), ())], tmp_path / "größe, (old)", jobs=1)
    ((command, env),) = given
    assert env["PYTHONPATH"] == "theirs"
    (folder,) = [word for word in command if word.startswith("hydra.sweep.dir=")]
    (override,) = OverridesParser.create().parse_overrides([folder])
    assert override.value() == str(tmp_path / "größe, (old)" / "none")


def test_a_job_that_leaves_no_metrics_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match=r"3 jobs failed, the first in .*none/0\. See .*none/log.txt"):
        tables.run(study, [(study.methods[0], study.seeds, (None,), ())], tmp_path, jobs=1)


def test_an_interrupted_table_ends_in_a_line_and_starts_no_further_job(study, tmp_path, monkeypatch):
    started = []

    def interrupted(command, **_):
        started.append(command)
        time.sleep(0.02)  # a job takes some time
        raise KeyboardInterrupt

    monkeypatch.setattr(tables.subprocess, "run", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted\. The same command resumes the missing jobs"):
        tables.run(study, [(study.methods[1], study.seeds, tuple(range(50)), ())], tmp_path, jobs=1)
    assert len(started) < 50


def test_the_table_holds_mean_spread_and_paired_difference(study, tmp_path, monkeypatch):
    accuracy = {"none": (0.80, 0.70, 0.60), "VAT-2": (0.90, 0.85, 0.59)}
    pretend_training(monkeypatch, [], lambda place, seed: accuracy[place][seed])
    chosen = {"none": None, "VAT": 2}
    tables.run(study, [(m, study.seeds, (chosen[m.name],), ()) for m in study.methods], tmp_path / "test", jobs=1)
    tables.show(study, chosen, tmp_path)
    rows = (tmp_path / "table.md").read_text().splitlines()
    # errors 20, 30, 40 and 10, 15, 41: differences -10, -15, +1
    assert rows[2] == "| none | – | 30.00 ± 10.00 | – | – | 0.200 | 1 |"
    assert rows[3] == "| VAT | eps 2 | 22.00 ± 16.64 | 20.1 | -8.00 ± 8.19, 2/3 | 0.200 | 1 |"


def test_the_table_has_the_mean_seconds_to_an_error(study, tmp_path, monkeypatch):
    pretend_training(monkeypatch, [], lambda place, seed: 0.9)
    chosen = {"none": None, "VAT": 2}
    tables.run(study, [(m, study.seeds, (chosen[m.name],), ()) for m in study.methods], tmp_path / "test", jobs=1)
    for seed in study.seeds:  # 10 % after 20, 30 and 40 seconds, 5 % on two seeds only
        errors = {10.0: 0.3, 20.0 + 10 * seed: 0.1, 90.0: 0.05 + 0.01 * (seed == 2)}
        lines = [json.dumps({"step": 1, "seconds": seconds, "val/error": error}) + "\n" for seconds, error in errors.items()]
        (tmp_path / "test" / "VAT-2" / str(seed) / "history.jsonl").write_text("".join(lines))
    tables.show(replace(study, errors=(10.0, 5.0)), chosen, tmp_path)
    heads, _, none, vat = (tmp_path / "table.md").read_text().splitlines()
    assert heads.endswith("| seconds to 10 % on validation | seconds to 5 % on validation |")
    assert none.endswith("| – | – |")
    assert vat.endswith("| 30 | – |")


def test_a_row_among_others_takes_each_seeds_best_on_validation_and_the_time_of_all(study, tmp_path):
    study = replace(study, methods=(*study.methods, tables.Method("better", among=("none", "VAT"))))
    # the test, had it been read, would choose otherwise
    for name, on_validation, on_test in (("none", (0.9, 0.7, 0.8), (0.6, 0.9, 0.5)), ("VAT-2", (0.8, 0.8, 0.8), (0.9, 0.7, 0.8))):
        cross_entropy = 0.1 if name == "none" else 0.2  # it decides the last seed
        for seed in study.seeds:
            leave(
                tmp_path / "test" / name / str(seed),
                val__accuracy=on_validation[seed],
                val__cross_entropy=cross_entropy,
                test__accuracy=on_test[seed],
                test__lds=0.2,
                seconds=1 + seed,
            )
    chosen = {"none": None, "VAT": 2, "better": None}
    tables.show(study, chosen, tmp_path)
    # errors 40, 30, 50, and 40, 10, 50 of the first: differences 0, 20, 0
    assert (tmp_path / "table.md").read_text().splitlines()[4] == "| better | – | 40.00 ± 10.00 | – | +6.67 ± 11.55, 0/3 | 0.200 | 4 |"
    (tmp_path / "test" / "none" / "1" / "metrics.json").unlink()
    tables.show(study, chosen, tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines()[4].startswith("| better | – | not run |")
    assert "better" not in [m.name for m in study.trained]


def test_a_method_that_lacks_a_seed_is_not_run(study, tmp_path):
    chosen = {"none": None, "VAT": 2}
    for seed in study.seeds:
        leave(tmp_path / "test" / "VAT-2" / str(seed), test__accuracy=0.5, test__lds=0.2, seconds=1)
    leave(tmp_path / "test" / "none" / "0", test__accuracy=0.5, test__lds=0.2, seconds=1)
    tables.show(study, chosen, tmp_path)
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[2:] == ["| none | – | not run | – | – | – | – |", "| VAT | eps 2 | 50.00 ± 0.00 | 20.1 | – | 0.200 | 1 |"]


def test_a_mean_over_jobs_of_different_settings_is_refused(study, tmp_path):
    for seed in study.seeds:
        leave(tmp_path / "test" / "none" / str(seed), lr=0.5 if seed == 2 else 1.0, test__accuracy=0.5, test__lds=0.2, seconds=1)
    with pytest.raises(SystemExit, match=r"none: .*none/0 was run with optimizer\.lr=1\.0, .*none/2 with 0\.5\. Remove one"):
        tables.show(study, {"none": None, "VAT": 2}, tmp_path)


def test_rows_of_other_data_or_length_than_the_first_are_refused(study, tmp_path):
    for name, steps in (("none", 5), ("VAT-2", 6)):
        for seed in study.seeds:
            place = tmp_path / "test" / name / str(seed)
            leave(place, test__accuracy=0.5, test__lds=0.2, seconds=1)
            with (place / "config.yaml").open("a") as file:
                file.write(f"trainer:\n  max_steps: {steps}\n")
    with pytest.raises(SystemExit, match=r"VAT: .* was run with trainer\.max_steps=6, .* with 5\. Remove one"):
        tables.show(study, {"none": None, "VAT": 2}, tmp_path)
    says_so = replace(study.methods[1], overrides=("regularizer=vat", "trainer.max_steps=6"))
    tables.show(replace(study, methods=(study.methods[0], says_so)), {"none": None, "VAT": 2}, tmp_path)


def test_what_is_given_for_every_job_wins_over_its_quiet(study, tmp_path, monkeypatch):
    commands = []
    pretend_training(monkeypatch, commands)
    study = replace(study, overrides=(*study.overrides, "logger=csv"))
    tables.run(study, [(study.methods[0], study.seeds, (None,), ())], tmp_path / "test", jobs=1)
    (command,) = commands
    assert command.index("logger=none") < command.index("logger=csv")


def test_a_value_that_was_not_chosen_is_the_one_the_job_found(study, tmp_path, monkeypatch):
    method = replace(study.methods[1], candidates=())
    study = replace(study, methods=(study.methods[0], method), tuning_seeds=range(0))
    commands = []
    pretend_training(monkeypatch, commands)
    chosen = {m.name: tables.choose(m, tmp_path / "tuning", study.tuning_seeds) for m in study.methods}
    assert chosen == {"none": None, "VAT": None}
    tables.run(study, [(m, study.seeds, (None,), ()) for m in study.methods], tmp_path / "test", jobs=1)
    assert not any(word.startswith("vat.eps") for command in commands for word in command)
    for seed in study.seeds:
        (tmp_path / "test" / "VAT" / str(seed) / "config.yaml").write_text("vat:\n  eps: 0.6\n")
    tables.show(study, chosen, tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines()[3].startswith("| VAT | eps 0.6 | 50.00")


@pytest.mark.parametrize(("override", "said"), [("trainer.max_step=5", "none: .*trainer.max_step"), ("vat.eps=3", "none: .*vat")])
def test_an_override_that_a_method_lacks_is_refused_before_any_of_them_begins(study, override, said):
    with pytest.raises(SystemExit, match=said):
        tables.refuse_impossible(replace(study, overrides=(*study.overrides, override)))


def test_jobs_are_told_to_end_when_the_budget_is_used_up(study, tmp_path, monkeypatch):
    """A job that saves at a signal, and the next one, which does not begin."""
    told = tmp_path / "told"
    code = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_):\n    pathlib.Path({str(told)!r}).write_text('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).open('a').write('x')\n"
        "time.sleep(60)\n"
    )
    popen = tables.subprocess.Popen
    monkeypatch.setattr(tables.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", code], **options))
    blocks = [(method, study.seeds, (None,), ()) for method in study.methods]
    began = time.monotonic()
    with pytest.raises(SystemExit, match="--budget is used up, and 6 jobs are not finished"):
        tables.run(study, blocks, tmp_path / "results", 1, began + 2)
    assert time.monotonic() - began < 30
    assert told.read_text() == "saved"
    assert (tmp_path / "begun").read_text() == "x"


def test_a_job_that_fails_within_the_budget_is_said_to_have_failed(study, tmp_path, monkeypatch):
    popen = tables.subprocess.Popen
    monkeypatch.setattr(tables.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", "1 / 0"], **options))
    with pytest.raises(SystemExit, match="3 jobs failed"):
        tables.run(study, [(study.methods[0], study.seeds, (None,), ())], tmp_path, 1, time.monotonic() + 60)
