"""The summary of a sweep: its jobs as they are now, in a table, a page and a figure."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from vat import files
from vat.plots import sweep_figure
from vat.runs import evidence, folders, page, report
from vat.runs.text import cell

ERROR = "error.txt"
"""Why the last try of a folder's job failed, also where an earlier job has left metrics there."""


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
    """The jobs that differ in their seed alone: errors in %, one for each job that is done and has it."""

    values: Mapping[str, str]
    num_jobs: int
    num_done: int
    val: Sequence[float]
    test: Sequence[float]
    lds: Sequence[float]
    seconds: Sequence[float]


def enlisted(folder: Path) -> list[Job]:
    """The jobs of the sweep that is summed up in `folder`, as they stand now."""
    noted = {path: files.read_json(path) for path in sorted((folder / "jobs").glob("[!.]*.json"))}
    return [_read(path, found) for path, found in noted.items() if found is not None]  # a torn one is of a job that did not begin


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
                len(done),
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
    order = ", by validation error" if any(s.val for s in settings) else ""
    table = Table(title=f"{folder.name}: mean ± standard deviation over seeds{order}", title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < len(heads) - 5 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    report.console.print("", table)
    found = evidence.groups((job.settings, job.metrics) for job in jobs)
    if found:
        trust = Table(*evidence.HEADS, title="How far validation can be trusted; differences paired by seed", title_justify="left")
        for row in evidence.rows(found):
            trust.add_row(*row)
        report.console.print(trust)
    notes = [*evidence.words(found), *_notes(jobs)]
    for note in notes:
        report.console.print(note, style="yellow", markup=False)
    sections = [page.table(heads, rows)]
    sections += [page.paragraph(ORDER), page.table(evidence.HEADS, evidence.rows(found))] if found else []
    if sum(bool(s.val) for s in settings) > 1:
        figure = sweep_figure([s.values for s in settings if s.val], [(s.val, s.test) for s in settings if s.val])
        with files.replacing(folder / "summary.png") as part:
            figure.savefig(part, dpi=150)
        sections.insert(0, page.image(folder / "summary.png", "Error against what was swept"))
    sections += [page.heading("To be noted"), *map(page.paragraph, notes)] if notes else []
    sections += [page.heading("Jobs"), page.table(*_job_rows(jobs, folder))]
    files.write(folder / "summary.html", page.page(f"Sweep {folder.name}", said, sections))
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
            str(s.num_jobs) if s.num_done == s.num_jobs else f"{s.num_done} of {s.num_jobs}",
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
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*map(cell, keys), "jobs", "done", *(f"{name}_{what}" for name in names for what in ("mean", "std"))])
    for s in settings:
        numbers = [(mean(v) if v else "", stdev(v) if len(v) > 1 else "") for v in (s.val, s.test, s.lds, s.seconds)]
        writer.writerow([*(cell(s.values.get(key, "")) for key in keys), s.num_jobs, s.num_done, *(n for pair in numbers for n in pair)])
    files.write(path, text.getvalue())


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
    done = [found.metrics for found in jobs if found.metrics]
    if without := sum("val/accuracy" not in metrics for metrics in done):
        notes.append(
            f"{without} of {len(done)} jobs have no validation part, so that validation cannot rank them: chosen by the test error, a "
            "setting looks better than it is; data.validation_share=0.1 holds examples out"
        )
    commits = sorted({found.commit for found in jobs if found.metrics and found.commit})
    if len(commits) > 1:
        notes.append(f"these results are of {len(commits)} versions of the code: {', '.join(commits)}")
    return notes


def _read(listed: Path, noted: dict[str, Any]) -> Job:
    """A job as it was enlisted and as it stands."""
    folder = report.shown((listed.parent / noted["folder"]).resolve())
    metrics, problem = folders.finished(folder), "interrupted"
    if metrics is not None and not folders.of_this_version(metrics):
        metrics, problem = None, f"left out, of another version of this project: delete {folder} to train it anew"
    said = (folder / ERROR).read_text(encoding="utf-8", errors="replace") if (folder / ERROR).is_file() else ""
    if said:
        metrics, problem = None, "failed: " + said.splitlines()[0]
    elif metrics is not None:
        problem = None
    commit = (files.read_json(folder / folders.ENVIRONMENT) or {}).get("git")
    return Job(noted["settings"], folder, metrics, problem, commit)
