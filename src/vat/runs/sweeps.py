"""Sweeps by `python src/train.py -m …`: jobs that neither stop nor spoil one another, and one summary at the end."""

import copyreg
import csv
import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback as HydraCallback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.table import Table

from vat.plots import sweep_figure
from vat.runs import evidence, folders, page, report, resume, user_errors
from vat.runs.checkpoints import newest_whole
from vat.runs.overrides import quoted

log = logging.getLogger(__name__)

NAME = "VAT_SWEEP"
"""Environment variable that tells a job which sweep it belongs to; its W&B group."""

SOURCE = Path(__file__).parents[2]
"""Where the commands are."""

ERROR = "error.txt"
"""Why the last try of a folder's job failed, also where an earlier job has left metrics there."""

Train = Callable[[DictConfig, Path, Path | None], dict[str, float]]

# Here: a launcher's worker imports this module, to unpickle the callback, and never runs train.py's body.
folders.register()
# It sends the schema's dataclasses to and fro by value, where a copy of this mark would not be the mark any more.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")


# ---------------------------------------------------------------------------------------------------------------- jobs


def job(cfg: DictConfig, folder: Path, train: Train) -> float:
    """One job of a sweep: what is done is not done again, what was interrupted goes on, what fails is left to the summary.

    A job of several processes gets a process of its own, which starts the others: they would repeat the command line, and by that
    of a sweep each would train other settings.

    Returns:
        The validation error, which a sampling sweeper minimises; NaN where the job failed.
    """
    overrides = list(HydraConfig.get().overrides.task)
    _enlist(overrides, folder)
    (folder / ERROR).unlink(missing_ok=True)
    try:
        resume.refuse_other_job(cfg, folder)
        metrics = folders.finished(folder)
        if metrics is None:
            start = newest_whole(folder) or folders.find_checkpoint(cfg)
            several = cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1
            metrics = _in_own_process(overrides, folder, start) if several else train(cfg, folder, start)
        if "val/accuracy" not in metrics:
            raise ValueError(f"{folder / folders.METRICS} is of another version of this project: delete {folder} to train it anew")
    except Exception as error:
        said = user_errors.readable(error).splitlines()[0]
        (folder / ERROR).write_text(f"{said}\n\n{traceback.format_exc()}")
        log.error("failed: %s (%s)", said, folder / ERROR)
        return math.nan
    return 1 - metrics["val/accuracy"]


def command(overrides: Iterable[str], folder: Path, start: Path | None = None) -> list[str]:
    """The command of a single run in `folder`, which goes on from the checkpoint `start`."""
    words = [*(word for word in overrides if not word.startswith("sweep=")), f"hydra.run.dir={quoted(folder)}"]
    words += [] if start is None else [f"ckpt_path={quoted(start)}"]
    return [sys.executable, str(SOURCE / "train.py"), *words]


def _in_own_process(overrides: Sequence[str], folder: Path, start: Path | None) -> dict[str, float]:
    about_the_sweep = (
        "hydra.mode",
        "hydra.run",
        "hydra.sweep",
        "hydra.launcher",
        "hydra/sweeper",
        "hydra/launcher",
        "hydra.job",
        "+hydra.job",
    )
    of_hydra = [word for word in HydraConfig.get().overrides.hydra if not word.startswith(about_the_sweep)]
    process = subprocess.Popen(command([*overrides, *of_hydra], folder, start), stderr=subprocess.PIPE, text=True)
    with process, _passing_on_sigterm(process) as passed_on:
        _, errors = process.communicate()
    sys.stderr.write(errors)
    if passed_on:
        raise SIGTERMException
    metrics = folders.finished(folder)
    if process.returncode or metrics is None:
        lines = [line for line in errors.splitlines() if line.strip()] or ["it left no metrics"]
        said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
        raise RuntimeError(f"{said} (status {process.returncode})")
    return metrics


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Within it SIGTERM goes to `process` in place of this one; the list holds those that came."""
    came: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        came.append(number)
        process.terminate()

    if threading.current_thread() is not threading.main_thread():  # a launcher's, which no signal reaches
        yield came
        return
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class Job:
    """A job of a sweep: its settings by key, where it is, its metrics if it is done, else why it is not."""

    settings: Mapping[str, str]
    folder: Path
    metrics: Mapping[str, float] | None
    problem: str | None
    commit: str | None


@dataclass(frozen=True)
class Setting:
    """The jobs that differ in their seed alone: errors in %, one for each job that is done."""

    values: Mapping[str, str]
    num_jobs: int
    val: Sequence[float]
    test: Sequence[float]
    lds: Sequence[float]
    seconds: Sequence[float]


class Sweep(HydraCallback):
    """Names a sweep, so that its jobs find together, and sums it up at its end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hand the sweep's name on to its jobs.

        Raises:
            SystemExit: several grids of conf/sweep are asked for at once, of which a job would know nothing.
        """
        for word in config.hydra.overrides.task:
            if word.startswith("sweep=") and re.search(r"[,(]", word):
                raise SystemExit(f"error: {word}: one sweep at a time; run them one after the other")
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{NAME}={_name(config)}")
        source = str(SOURCE)  # a launcher's worker is no `python src/train.py`
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the summary.

        Raises:
            SystemExit: no job was started, or one failed.
        """
        folder = Path(config.hydra.sweep.dir) / _name(config)
        try:
            jobs = enlisted(folder)
            if not jobs:
                raise SystemExit(f"error: the sweep is empty: {' '.join(config.hydra.overrides.task) or 'nothing'} leads to no job")
            summarise(jobs, folder, said=_said(config))
        except Exception as error:  # Hydra would make a warning of it
            raise SystemExit(f"error: the sweep has no summary: {error!r}") from error
        missing = [j for j in jobs if j.metrics is None]
        if missing:
            raise SystemExit(f"error: {len(missing)} of {len(jobs)} jobs have no result; the same command tries them again")


def enlisted(folder: Path) -> list[Job]:
    """The jobs of the sweep that is summed up in `folder`, as they stand now."""
    return [_read(path) for path in sorted((folder / "jobs").glob("*.json"))]


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """The settings of a sweep, by their validation error, best first; those without a result last.

    The order, and so the choice, is by validation: a test error chosen by itself would flatter.
    """
    keys = {key: None for job in jobs for key in job.settings}
    swept = [key for key in keys if key != "seed" and len({job.settings.get(key) for job in jobs}) > 1]
    groups: dict[tuple[str | None, ...], list[Job]] = {}
    for found in jobs:
        groups.setdefault(tuple(found.settings.get(key) for key in swept), []).append(found)
    settings = []
    for values, of_setting in groups.items():
        done = [j.metrics for j in of_setting if j.metrics is not None]
        settings.append(
            Setting(
                {key: value for key, value in zip(swept, values, strict=True) if value is not None},
                len(of_setting),
                *([scale * (1 - m[name] if error else m[name]) for m in done if name in m] for name, scale, error in COLUMNS),
            )
        )
    return sorted(settings, key=lambda s: mean(s.val) if s.val else math.inf)


COLUMNS = (("val/accuracy", 100, True), ("test/accuracy", 100, True), ("test/lds", 1, False), ("seconds", 1, False))


def summarise(jobs: Sequence[Job], folder: Path, *, said: str) -> None:
    """Print the table of a sweep, and write it as CSV and, with a figure, as HTML.

    Args:
        jobs: of the sweep.
        folder: for the files.
        said: the command.
    """
    settings = settings_of(jobs)
    heads, rows = _rows(settings)
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(settings, folder / "summary.csv")
    table = Table(title=f"{folder.name}: mean ± standard deviation over seeds, by validation error", title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < len(heads) - 5 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    report.console.print("", table)
    found = evidence.groups((job.settings, job.metrics) for job in jobs)
    trust = Table(*evidence.HEADS, title="How far validation can be trusted; differences paired by seed", title_justify="left")
    for row in evidence.rows(found):
        trust.add_row(*row)
    report.console.print(trust)
    notes = [*evidence.words(found), *_notes(jobs)]
    for note in notes:
        report.console.print(note, style="yellow", markup=False)
    sections = [page.table(heads, rows), page.paragraph(ORDER), page.table(evidence.HEADS, evidence.rows(found))]
    if sum(bool(s.val) for s in settings) > 1:
        figure = sweep_figure([s.values for s in settings if s.val], [(s.val, s.test) for s in settings if s.val])
        figure.savefig(folder / "summary.png", dpi=150)
        sections.insert(0, page.image(folder / "summary.png", "Error against what was swept"))
    sections += [page.heading("To be noted"), *map(page.paragraph, notes)] if notes else []
    sections += [page.heading("Jobs"), page.table(*_job_rows(jobs, folder))]
    (folder / "summary.html").write_text(page.page(f"Sweep {folder.name}", said, sections), encoding="utf-8")
    report.console.print(f"as a page: {folder / 'summary.html'}, as numbers: {folder / 'summary.csv'}")


ORDER = (
    "Sorted by the validation error, which a setting is to be chosen by. The test error stands beside it for the report: chosen by "
    "itself it would flatter."
)


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """`4.74 ± 1.20`; without a spread where there is one value, – where there is none."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _rows(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    keys = list({key: None for s in settings for key in s.values})
    heads = [*keys, "jobs", "validation error, %", "test error, %", "LDS", "seconds"]
    rows = [
        [
            *(s.values.get(key, "–") for key in keys),
            str(s.num_jobs) if len(s.val) == s.num_jobs else f"{len(s.val)} of {s.num_jobs}",
            mean_and_spread(s.val),
            mean_and_spread(s.test),
            mean_and_spread(s.lds, 3),
            mean_and_spread(s.seconds, 0),
        ]
        for s in settings
    ]
    return heads, rows


def _write_csv(settings: Sequence[Setting], path: Path) -> None:
    keys = list({key: None for s in settings for key in s.values})
    names = ("val_error_percent", "test_error_percent", "test_lds", "seconds")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "jobs", "done", *(f"{name}_{what}" for name in names for what in ("mean", "std"))])
        for s in settings:
            numbers = [(mean(v) if v else "", stdev(v) if len(v) > 1 else "") for v in (s.val, s.test, s.lds, s.seconds)]
            writer.writerow([*(s.values.get(key, "") for key in keys), s.num_jobs, len(s.val), *(n for pair in numbers for n in pair)])


def _job_rows(jobs: Sequence[Job], folder: Path) -> tuple[list[str], list[list[str]]]:
    heads = ["job", "settings", "validation error, %", "test error, %", "folder"]
    rows = []
    for number, found in enumerate(jobs):
        errors = [
            f"{100 * (1 - found.metrics[name]):.2f}" if found.metrics and name in found.metrics else "–"
            for name in ("val/accuracy", "test/accuracy")
        ]
        where = os.path.relpath(found.folder, folder)
        rows.append(
            [str(number), " ".join(f"{k}={v}" for k, v in found.settings.items()), *errors, page.link(f"{where}/index.html", where)]
        )
    return heads, rows


def _notes(jobs: Sequence[Job]) -> list[str]:
    notes = [f"{found.folder}: {found.problem}" for found in jobs if found.problem]
    commits = sorted({found.commit for found in jobs if found.metrics and found.commit})
    if len(commits) > 1:
        notes.append(f"these results are of {len(commits)} versions of the code: {', '.join(commits)}")
    return notes


def _enlist(overrides: Sequence[str], folder: Path) -> None:
    sweep = os.environ.get(NAME)
    if sweep is None:  # the callback was taken out
        return
    deciding = _deciding(overrides)
    listed = Path(HydraConfig.get().sweep.dir) / sweep / "jobs" / f"{digest(deciding)}.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    settings = dict(word.lstrip("+").split("=", 1) for word in deciding if "=" in word)
    settings = {key: value for key, value in settings.items() if key.split(".")[0] != "sweep"}
    listed.write_text(json.dumps({"settings": settings, "folder": os.path.relpath(folder, listed.parent)}))


def _read(listed: Path) -> Job:
    """A job as it was enlisted and as it stands."""
    noted = json.loads(listed.read_text())
    folder = report.shown((listed.parent / noted["folder"]).resolve())
    metrics, problem, commit = None, "interrupted", None
    try:
        metrics = folders.finished(folder)
        if metrics is not None and "val/accuracy" not in metrics:
            metrics, problem = None, f"left out, of another version of this project: delete {folder} to train it anew"
    except ValueError:
        problem = f"left out, {folders.METRICS} cannot be read: delete it to train the job anew"
    if (folder / ERROR).is_file():
        metrics, problem = None, "failed: " + (folder / ERROR).read_text().splitlines()[0]
    elif metrics is not None:
        problem = None
    if (folder / folders.ENVIRONMENT).is_file():
        commit = json.loads((folder / folders.ENVIRONMENT).read_text()).get("git")
    return Job(noted["settings"], folder, metrics, problem, commit)


def _name(config: DictConfig) -> str:
    """The name of a sweep: what is swept, and a digest of it, so that the same command goes on with the same sweep."""
    words = _deciding(config.hydra.overrides.task)
    swept = [o.get_key_element() for o in OverridesParser.create().parse_overrides(words) if o.is_sweep_override()]
    grids = OmegaConf.to_container(config.hydra.sweeper)
    label = "-".join([*filter(None, [config.hydra.runtime.choices.get("sweep")]), *swept]) or "sweep"
    return f"{''.join(c if c.isalnum() or c in '-._' else '_' for c in label)[:60]}-{digest([*words, json.dumps(grids)])}"


def _deciding(overrides: Iterable[str]) -> list[str]:
    """Those on which a job's result depends."""
    return [word for word in overrides if word.lstrip("+").split("=")[0].split(".")[0] not in folders.BYSTANDERS]


def _said(config: DictConfig) -> str:
    return shlex.join(["python", "src/train.py", "-m", *config.hydra.overrides.task])


def digest(words: Iterable[str]) -> str:
    """Eight hexadecimal digits that follow from overrides, in whatever order they are given."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:8]
