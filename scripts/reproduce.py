"""Make a table of the README.

python scripts/reproduce.py digits

Each method's one hyper-parameter is chosen on validation, on three seeds that the table does not use, from five values for every
method; then the table's seeds are trained and tested with the value chosen. Jobs are those of `python src/train.py -m …`; one that is
done is not done again, so an interrupted table goes on by the same command.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
METRICS = "metrics.json"


@dataclass(frozen=True)
class Method:
    """A row: its name, the overrides that make it, and the hyper-parameter with its candidates."""

    name: str
    overrides: tuple[str, ...]
    tuned: str | None = None
    candidates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Study:
    """A table: overrides that all rows share, seeds to choose on (none: values are given) and seeds to report."""

    methods: tuple[Method, ...]
    overrides: tuple[str, ...]
    tuning_seeds: range
    seeds: range


SYNTHETIC = ("trainer.enable_progress_bar=false", "logger=none")
STUDIES = {
    "digits": Study(
        (
            Method("none", ("regularizer=none",)),
            Method("random perturbation", ("regularizer=random_perturbation",), "random_perturbation.eps", (1, 2, 4, 8, 16)),
            Method("adversarial", ("regularizer=adversarial",), "adversarial.eps", (0.25, 0.5, 1, 2, 4)),
            Method("entropy", ("regularizer=entropy",), "entropy.weight", (0.03, 0.1, 0.3, 1, 3)),
            Method("VAT", ("regularizer=vat",), "vat.eps", (0.25, 0.5, 1, 2, 4)),
            Method("VAT + entropy", ("regularizer=vat_entropy",), "vat.eps", (0.25, 0.5, 1, 2, 4)),
            Method("VAT with margin direction", ("regularizer=vat", "vat.direction=margin"), "vat.eps", (0.25, 0.5, 1, 2, 4)),
            Method("mean teacher", ("regularizer=mean_teacher",), "mean_teacher.weight", (1, 3, 10, 30, 100)),
        ),
        (),
        tuning_seeds=range(100, 103),
        seeds=range(10),
    ),
}
for name, rpt, vat in (("moons", 1.8, 0.6), ("circles", 2.8, 0.5)):
    STUDIES[name] = Study(  # ε are DSVAT's
        (
            Method("none", ("regularizer=none",)),
            Method("random perturbation", ("regularizer=random_perturbation",), "random_perturbation.eps", (rpt,)),
            Method("VAT", ("regularizer=vat",), "vat.eps", (vat,)),
        ),
        (f"experiment=synthetic_{name}",),
        tuning_seeds=range(0),
        seeds=range(50),
    )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=STUDIES)
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where jobs and tables are kept")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="jobs at a time, of one thread each")
    arguments = parser.parse_args()
    study, folder = STUDIES[arguments.table], arguments.folder / arguments.table

    if study.tuning_seeds:
        pending = [(m, study.tuning_seeds, m.candidates, ("test=none",)) for m in study.methods if m.tuned]
        run(study, pending, folder / "tuning", arguments.jobs)
    chosen = {m.name: choose(m, folder / "tuning", study.tuning_seeds) for m in study.methods}
    run(study, [(m, study.seeds, (chosen[m.name],), ()) for m in study.methods], folder / "test", arguments.jobs)
    show(study, chosen, folder)


def run(
    study: Study,
    blocks: Sequence[tuple[Method, range, tuple[float | None, ...], tuple[str, ...]]],
    folder: Path,
    jobs: int,
) -> None:
    """Train every (method, value, seed), a process for each method and value."""
    sweeps = [(m, seeds, value, extra) for m, seeds, values, extra in blocks for value in values]

    def sweep(block: tuple[Method, range, float | None, tuple[str, ...]]) -> None:
        method, seeds, value, extra = block
        where = _place(folder, method, value)
        missing = [seed for seed in seeds if not (where / str(seed) / METRICS).exists()]
        if not missing:
            return
        command = [
            sys.executable,
            str(ROOT / "src" / "train.py"),
            "-m",
            *study.overrides,
            *method.overrides,
            *extra,
            *SYNTHETIC,
        ]
        command += [f"seed={','.join(map(str, missing))}", f"hydra.sweep.dir={where}", "hydra.sweep.subdir=${seed}"]
        command += [f"{method.tuned}={value}"] if method.tuned else []
        where.mkdir(parents=True, exist_ok=True)
        with (where / "log.txt").open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)  # what is missing shows below

    with ThreadPoolExecutor(jobs) as pool:
        for _ in track(pool.map(sweep, sweeps), total=len(sweeps), description=str(folder)):
            pass
    missing = [p for m, seeds, value, _ in sweeps for s in seeds if not (p := _place(folder, m, value) / str(s) / METRICS).exists()]
    if missing:
        raise SystemExit(f"{len(missing)} jobs failed, the first in {missing[0].parent}: see {missing[0].parent.parent}/log.txt")


def choose(method: Method, folder: Path, seeds: range) -> float | None:
    """The candidate with the best mean validation accuracy; ties go to the lower cross entropy."""
    if len(method.candidates) < 2:
        return method.candidates[0] if method.candidates else None

    def score(value: float) -> tuple[float, float]:
        found = [_metrics(folder, method, value, seed) for seed in seeds]
        return mean(m["val/accuracy"] for m in found), -mean(m["val/cross_entropy"] for m in found)

    return max(method.candidates, key=score)


def show(study: Study, chosen: dict[str, float | None], folder: Path) -> None:
    """Print the table and write it as Markdown."""
    console = Console(width=140)
    rows = []
    errors = {m.name: [100 * (1 - x) for x in _column(study, m, chosen, folder, "test/accuracy")] for m in study.methods}
    baseline = errors[study.methods[0].name]
    for method in study.methods:
        own = errors[method.name]
        differences = [a - b for a, b in zip(own, baseline, strict=True)]
        lds = _column(study, method, chosen, folder, "test/lds")
        seconds = _column(study, method, chosen, folder, "seconds")
        setting = f"{method.tuned.split('.')[-1]} {chosen[method.name]:g}" if method.tuned else "–"
        paired = (
            "–" if own is baseline else f"{mean(differences):+.2f} ± {stdev(differences):.2f}, {sum(d < 0 for d in differences)}/{len(own)}"
        )
        rows.append((method.name, setting, _spread(own), paired, f"{mean(lds):.3f}", f"{mean(seconds):.0f}"))
    heads = ("method", "chosen", "test error, %", "paired difference, wins", "LDS", "seconds")
    table = Table(*heads, title=f"{folder.name}: n = {len(study.seeds)}, mean ± standard deviation")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ("---",) * len(heads), *rows)]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    console.print(f"as Markdown: {folder / 'table.md'}")


def _column(study: Study, method: Method, chosen: dict[str, float | None], folder: Path, name: str) -> list[float]:
    return [_metrics(folder / "test", method, chosen[method.name], seed)[name] for seed in study.seeds]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def _metrics(folder: Path, method: Method, value: float | None, seed: int) -> dict[str, float]:
    return json.loads((_place(folder, method, value) / str(seed) / METRICS).read_text())


def _place(folder: Path, method: Method, value: float | None) -> Path:
    name = method.name.replace(" ", "_")
    return folder / (name if value is None else f"{name}-{value:g}")


if __name__ == "__main__":
    main()
