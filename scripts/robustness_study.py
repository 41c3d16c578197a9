"""Compare clean and robust accuracy of the methods in tables of scripts/reproduce.py.

python scripts/robustness_study.py digits mnist_100 mnist_supervised --figure docs/robustness.png
python scripts/robustness_study.py digits --jobs 2 attack=standard eps.linf=[0.1,0.2]

`python src/evaluate.py` evaluates the last checkpoint of every seed of every method. Overrides after the tables' names apply to every
evaluation. To resume, repeat the command: finished evaluations are not repeated. Each table's folder gets a file robustness.md, and one
figure shows all tables.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from rich.console import Console
from rich.progress import track
from rich.table import Table

from vat.plots import study_figure
from vat.runs.overrides import quoted

RADII = {"digits": ("eps.l2=[1,2]", "eps.linf=[0.125,0.25]"), "mnist": ("eps.l2=[2]", "eps.linf=[0.15]")}
"""Radii at which the methods differ, by the prefix of a table's name. MNIST has only one for each norm, because it takes longer."""

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def main() -> None:
    """Evaluate what is missing, then write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="tables of scripts/reproduce.py, as digits or mnist_100; then overrides")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="folder of reproduce.py's jobs and tables")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="parallel evaluations, with one thread each")
    parser.add_argument("--figure", type=Path, help="file of the figure; by default robustness.png in the folder of the first table")
    arguments = parser.parse_intermixed_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs must be >= 1, got {arguments.jobs}")
    overrides = [word for word in arguments.tables if "=" in word]
    folders = [arguments.folder / word for word in arguments.tables if "=" not in word]
    if not folders:
        raise SystemExit("error: no table given: add the name of one, as digits")
    tables = {folder.name: evaluated(folder, overrides, arguments.jobs) for folder in folders}
    for folder in folders:
        show(tables[folder.name], folder)
    path = arguments.figure or folders[0] / "robustness.png"
    study_figure(tables).savefig(path, dpi=130)
    print(path)


def evaluated(folder: Path, overrides: Sequence[str], jobs: int) -> Found:
    """Reports of each seed of each method of a table. Missing ones are evaluated first."""
    methods = checkpoints(folder / "test")
    radii = next((radii for name, radii in RADII.items() if folder.name.startswith(name)), ())
    settings = ["attack=worst_case", *radii, *overrides]  # if a key occurs twice, the last value counts
    with ThreadPoolExecutor(jobs) as pool:
        work = pool.map(lambda paths: evaluate(paths, settings), methods.values())
        return dict(zip(methods, track(work, total=len(methods), description=str(folder)), strict=True))


def checkpoints(folder: Path) -> dict[str, list[Path]]:
    """Find the last checkpoints of each method, in the order of the seeds. All methods must have the same seeds.

    Raises:
        SystemExit: If there are no checkpoints, or a method does not have the seeds of the first.
    """
    methods = {
        place.name.replace("_", " "): [
            path.parent / "checkpoints" / "last.ckpt"
            for path in sorted(place.glob("*/metrics.json"), key=lambda path: int(path.parent.name))  # only finished jobs have one
        ]
        for place in sorted(folder.glob("*/"))
    }
    methods = {name: paths for name, paths in methods.items() if paths}
    if not methods:
        raise SystemExit(f"error: {folder} contains no finished job: make the table first with scripts/reproduce.py")
    seeds = {name: [path.parents[1].name for path in paths] for name, paths in methods.items()}
    first = next(iter(seeds))
    for name, own in seeds.items():
        if own != seeds[first]:
            raise SystemExit(
                f"error: all methods need the same seeds, got {name} with {', '.join(own)} and {first} with {', '.join(seeds[first])}: "
                "finish the table first"
            )
    return methods


def evaluate(paths: Sequence[Path], settings: Sequence[str]) -> list[dict[str, Any]]:
    """Evaluate checkpoints with src/evaluate.py, all in one process.

    Raises:
        SystemExit: If the evaluation failed.
    """
    subjects = ",".join(quoted(path.resolve()) for path in paths)
    log = paths[0].parents[2] / "evaluation"
    command = [sys.executable, str(ROOT / "src" / "evaluate.py"), "-m", f"ckpt_path={subjects}", *settings]
    command += [f"hydra.sweep.dir={quoted(log.resolve())}", "hydra.sweep.subdir=."]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {paths[0].parents[2]} could not be evaluated: {done.stderr.strip().splitlines()[-1]}")
    return [found(path) for path in paths]


def found(checkpoint: Path) -> dict[str, Any]:
    """Read the latest report of a checkpoint. A finished evaluation that is started again writes its report again."""
    written = (checkpoint.parents[1] / "evaluation").glob("robustness-*/robustness.json")
    return json.loads(max(written, key=lambda path: path.stat().st_mtime).read_text())


def show(found: Found, folder: Path) -> None:
    """Print the table, and write it as Markdown."""
    one = next(iter(found.values()))[0]
    robust = {norm: values["eps"] for norm, values in one["robust"].items()}
    heads = ["method", "clean", *(f"{norm}, ε = {eps:g}" for norm, radii in robust.items() for eps in radii), "warnings"]
    rows = [row(method, seeds, robust) for method, seeds in found.items()]
    number = len(next(iter(found.values())))
    whole = "" if one["examples"] == one["of"] else f", {one['examples']} of {one['of']} examples"
    title = f"{folder.name}: accuracy in % under the worst of all attacks, n = {number}{whole}, ε in {one['unit']}"
    table = Table(*heads, title=title)
    for cells in rows:
        table.add_row(*cells)
    Console(width=200).print(table)
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    (folder / "robustness.md").write_text(f"{title}\n\n" + "\n".join(lines) + "\n")
    print(folder / "robustness.md")


def row(method: str, seeds: Sequence[Mapping[str, Any]], robust: Mapping[str, Sequence[float]]) -> list[str]:
    """Cells of a method: mean ± standard deviation over the seeds, and the sanity checks that warned, with the number of seeds."""

    def cell(values: Sequence[float]) -> str:
        spread = stdev(values) if len(values) > 1 else 0.0
        return f"{100 * mean(values):.1f} ± {100 * spread:.1f}"

    cells = [method, cell([one["clean"]["accuracy"] for one in seeds])]
    for norm, radii in robust.items():
        cells += [cell([one["robust"][norm]["accuracy"]["worst"][place] for one in seeds]) for place in range(len(radii))]
    spoke = sorted({check for one in seeds for check in one["warnings"]})
    return [*cells, ", ".join(f"{check} ({sum(check in one['warnings'] for one in seeds)})" for check in spoke) or "none"]


if __name__ == "__main__":
    main()
