"""Tables of methods. Each method is tuned on validation, trained on other seeds, tested and compared.

Jobs are those of `python src/train.py -m …`. Finished jobs are skipped and interrupted jobs are resumed.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vat import files
from vat.lightning import history
from vat.runs.overrides import quoted

SOURCE = Path(__file__).parents[2]
"""Folder of the commands."""

CONFIG, METRICS = "config.yaml", "metrics.json"

QUIET = ("trainer.enable_progress_bar=false", "logger=none", "figures=null")


@dataclass(frozen=True)
class Method:
    """A row: its name, its overrides, its hyper-parameter and the candidates for it, and a paper's test error in %.

    A row with `among` trains nothing. For each seed it takes the row in `among` that is best on this seed's validation labels.
    """

    name: str
    overrides: tuple[str, ...] = ()
    tuned: str | None = None
    candidates: tuple[float, ...] = ()
    paper: str = "–"
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A table: its rows, their common overrides, seeds for tuning (none if values are fixed), seeds to report, overrides for tuning.

    The table also has the seconds until the validation error is at most each of `errors`, in %.
    """

    methods: tuple[Method, ...]
    overrides: tuple[str, ...]
    tuning_seeds: range
    seeds: range
    tuning_overrides: tuple[str, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def trained(self) -> tuple[Method, ...]:
        """The rows that train."""
        return tuple(method for method in self.methods if not method.among)


def refuse_impossible(study: Study) -> None:
    """Compose a job of each method. So an override that one method does not have is refused before the others train for hours.

    Raises:
        SystemExit: If Hydra refuses a job. The error names the method and has Hydra's message.
    """
    from hydra import compose, initialize_config_dir  # here, because the import takes seconds and only tables with overrides need it
    from hydra.errors import HydraException

    from vat.runs import schema

    schema.register()
    with initialize_config_dir(str(SOURCE.parent / "conf"), version_base="1.3"):
        for method in study.trained:
            try:
                compose("train", overrides=[*QUIET, *study.overrides, *method.overrides])
            except HydraException as error:
                raise SystemExit(f"{method.name}: {str(error).splitlines()[0]}") from None


def call(command: Sequence[str], until: float | None, **options: Any) -> None:
    """Run a command. End it by SIGTERM, at which jobs save, when `time.monotonic()` reaches `until`."""
    if until is None:
        subprocess.run(command, check=False, **options)  # `run` checks which results are missing
        return
    if time.monotonic() >= until:
        return
    with subprocess.Popen(command, **options) as process:
        try:
            process.wait(until - time.monotonic())
        except subprocess.TimeoutExpired:
            process.terminate()


def run(
    study: Study,
    blocks: Sequence[tuple[Method, range, tuple[float | None, ...], tuple[str, ...]]],
    folder: Path,
    jobs: int,
    until: float | None = None,
) -> None:
    """Train every (method, value, seed) until the time `until`, with one process for each method and value."""
    sweeps = [(m, seeds, value, extra) for m, seeds, values, extra in blocks for value in values]

    def sweep(block: tuple[Method, range, float | None, tuple[str, ...]]) -> None:
        method, seeds, value, extra = block
        where = _place(folder, method, value)
        missing = [seed for seed in seeds if not _record(folder, method, value, seed).exists()]
        if not missing:
            return
        command = [
            sys.executable,
            str(SOURCE / "train.py"),
            "-m",
            *QUIET,  # first, so that later overrides win
            *study.overrides,
            *method.overrides,
            *extra,
        ]
        command += [f"seed={','.join(map(str, missing))}", f"hydra.sweep.dir={quoted(where)}", "hydra.sweep.subdir=${seed}"]
        command += [] if value is None else [f"{method.tuned}={value}"]
        where.mkdir(parents=True, exist_ok=True)
        with (where / "log.txt").open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            call(command, until, stdout=log, stderr=log, env=environment)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            for _ in track(pool.map(sweep, sweeps), total=len(sweeps), description=str(folder)):
                pass
    except KeyboardInterrupt:  # the jobs received it too
        raise SystemExit("interrupted. The same command resumes the missing jobs.") from None
    missing = [p for m, seeds, value, _ in sweeps for s in seeds if not (p := _record(folder, m, value, s)).exists()]
    if missing and until is not None and time.monotonic() >= until:
        raise SystemExit(f"--budget is used up, and {len(missing)} jobs are not finished. The same command resumes them.")
    if missing:
        raise SystemExit(f"{len(missing)} jobs failed, the first in {missing[0].parent}. See {missing[0].parent.parent}/log.txt.")


def choose(method: Method, folder: Path, seeds: range) -> float | None:
    """The candidate with the best mean validation accuracy, and among equals the lowest cross entropy.

    None if there are no candidates, or a job is missing.
    """
    if len(method.candidates) < 2:
        return method.candidates[0] if method.candidates else None
    if not all(_record(folder, method, value, seed).exists() for value in method.candidates for seed in seeds):
        return None

    def score(value: float) -> tuple[float, float]:
        return on_validation([json.loads(_record(folder, method, value, seed).read_text()) for seed in seeds])

    return max(method.candidates, key=score)


def on_validation(found: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """A score of jobs from their metrics, better if larger: mean validation accuracy, then mean cross entropy times -1."""
    return mean(m["val/accuracy"] for m in found), -mean(m["val/cross_entropy"] for m in found)


def show(study: Study, chosen: dict[str, float | None], folder: Path) -> None:
    """Print the table and write it as Markdown. A method with a missing seed is shown as not run."""
    console = Console(width=140)
    places = {m.name: [_place(folder / "test", m, chosen[m.name]) / str(seed) for seed in study.seeds] for m in study.trained}
    results = {
        name: [json.loads((place / METRICS).read_text()) for place in found]
        for name, found in places.items()
        if all((place / METRICS).exists() for place in found)
    }
    for name in results:
        refuse_mixture(name, places[name])
    for method in study.methods:
        if method.among and all(name in results for name in method.among):
            rivals = zip(*(results[name] for name in method.among), strict=True)
            best = [{**max(m, key=lambda one: on_validation([one])), "seconds": sum(one["seconds"] for one in m)} for m in rivals]
            results[method.name] = best  # with the sum of their times
    errors = {name: [100 * (1 - metrics["test/accuracy"]) for metrics in found] for name, found in results.items()}
    baseline, rows = study.methods[0].name, []
    for method in study.methods:
        if method.name in places and method.name in results and baseline in results:
            refuse_other_protocol(method, places[method.name][0], places[baseline][0])
        if (own := errors.get(method.name)) is None:
            rows.append((method.name, "–", "not run", method.paper, *["–"] * (3 + len(study.errors))))
            continue
        paired = "–"
        if method.name != baseline and baseline in errors:
            differences = [a - b for a, b in zip(own, errors[baseline], strict=True)]
            paired = f"{mean(differences):+.2f} ± {stdev(differences):.2f}, {sum(d < 0 for d in differences)}/{len(own)}"
        setting = "–"
        if method.tuned:  # the chosen value, or the value from conf/tuned.yaml
            value = chosen[method.name]
            if value is None:
                value = OmegaConf.select(OmegaConf.load(places[method.name][0] / CONFIG), method.tuned)
            setting = f"{method.tuned.split('.')[-1]} {value:g}"
        lds, seconds = (mean(metrics[name] for metrics in results[method.name]) for name in ("test/lds", "seconds"))
        reached = [mean_seconds_to(error, places.get(method.name, ())) for error in study.errors]
        row = (method.name, setting, f"{mean(own):.2f} ± {stdev(own):.2f}", method.paper, paired, f"{lds:.3f}", f"{seconds:.0f}", *reached)
        rows.append(row)
    to_errors = [f"seconds to {error:g} % on validation" for error in study.errors]
    heads = ("method", "chosen", "test error, %", "paper", "paired difference, wins", "LDS", "seconds", *to_errors)
    table = Table(*heads, title=f"{folder.name}: n = {len(study.seeds)}, mean ± standard deviation")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ("---",) * len(heads), *rows)]
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "table.md", "\n".join(lines) + "\n")
    console.print(f"Markdown: {folder / 'table.md'}")


def mean_seconds_to(error: float, places: Sequence[Path]) -> str:
    """Mean over jobs of the seconds until the validation error is at most `error`, in %; "–" if a job does not reach it."""
    found = []
    for place in places:
        reached = (record for record in history.read(place / history.HISTORY) if 100 * record["val/error"] <= error)
        found.append(next(reached, {}).get("seconds"))
    return f"{mean(found):.0f}" if found and None not in found else "–"


def refuse_mixture(name: str, places: Sequence[Path]) -> None:
    """Refuse a mean over jobs with different settings. A user may have changed a configuration while a table was interrupted.

    Raises:
        SystemExit: If a setting that both jobs have differs. The error names the first one.
    """
    for place in places[1:]:
        _refuse_difference(name, places[0], place, lambda key: not key.endswith("seed"))


def refuse_other_protocol(method: Method, place: Path, baseline: Path) -> None:
    """Refuse a row whose jobs had other data or another trainer than the first row's, unless its method overrides them.

    Raises:
        SystemExit: If a setting differs. The error names the first one.
    """
    said = {word.split("=")[0] for word in method.overrides}
    _refuse_difference(method.name, place, baseline, lambda key: key.split(".")[0] in ("data", "trainer") and key not in said)


def _refuse_difference(name: str, place: Path, other: Path, counts: Callable[[str], bool]) -> None:
    ours, theirs = (dict(_settings(OmegaConf.load(p / CONFIG))) for p in (place, other))
    for key in filter(counts, sorted(ours.keys() & theirs.keys())):
        if ours[key] != theirs[key]:
            raise SystemExit(
                f"{name}: {place} was run with {key}={ours[key]}, {other} with {theirs[key]}. Remove one of them, and run again."
            )


def _settings(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, DictConfig | ListConfig):
        yield key, node
        return
    for name, value in node.items() if isinstance(node, DictConfig) else enumerate(node):
        yield from _settings(value, f"{key}.{name}".lstrip("."))


def _record(folder: Path, method: Method, value: float | None, seed: int) -> Path:
    """The metrics file of a job. It exists when the job is finished."""
    return _place(folder, method, value) / str(seed) / METRICS


def _place(folder: Path, method: Method, value: float | None) -> Path:
    name = re.sub(r"[^\w+]+", "_", method.name, flags=re.ASCII)  # Hydra would read a comma as two values
    return folder / (name if value is None else f"{name}-{value:g}")
