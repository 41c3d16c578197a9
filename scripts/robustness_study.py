"""Clean against robust accuracy of the methods of a table that scripts/reproduce.py has made.

python scripts/robustness_study.py digits
python scripts/robustness_study.py mnist_100 --jobs 2 limit=2000 eps.linf=[0.05,0.1,0.2]

Evaluates the last checkpoint of every seed of every method, by `python src/evaluate.py`; one that is done is not done again and one that
was interrupted goes on, by the same command. Overrides after the table's name go to every evaluation. Writes robustness.md and
robustness.png beside the table.
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

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def main() -> None:
    """Evaluate what is missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="as scripts/reproduce.py was given it: digits, mnist_100, …")
    parser.add_argument("overrides", nargs="*", help="of every evaluation, as attack=autoattack")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where reproduce.py kept jobs and tables")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="evaluations at a time, of one thread each")
    arguments = parser.parse_intermixed_args()
    folder = arguments.folder / arguments.table
    methods = checkpoints(folder / "test")
    every = [path for paths in methods.values() for path in paths]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        work = pool.map(lambda path: evaluate(path, arguments.overrides), every)
        results = dict(zip(every, track(work, total=len(every), description=str(folder)), strict=True))
    found = {method: [results[path] for path in paths] for method, paths in methods.items()}
    show(found, folder)


def checkpoints(folder: Path) -> dict[str, list[Path]]:
    """The last checkpoints of each method, in the order of the seeds, which all methods must share.

    Raises:
        SystemExit: there are none, or a method has other seeds than the first.
    """
    methods = {
        place.name.replace("_", " "): sorted(place.glob("*/checkpoints/last.ckpt"), key=lambda path: int(path.parents[1].name))
        for place in sorted(folder.glob("*/"))
    }
    methods = {name: paths for name, paths in methods.items() if paths}
    if not methods:
        raise SystemExit(f"error: no checkpoint under {folder}/*/*/checkpoints: make the table first, by scripts/reproduce.py")
    seeds = {name: [path.parents[1].name for path in paths] for name, paths in methods.items()}
    first = next(iter(seeds))
    for name, own in seeds.items():
        if own != seeds[first]:
            raise SystemExit(f"error: {name} has the seeds {', '.join(own)}, {first} has {', '.join(seeds[first])}: finish the table first")
    return methods


def evaluate(checkpoint: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What src/evaluate.py finds out about a checkpoint.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, str(ROOT / "src" / "evaluate.py"), f"ckpt_path='{checkpoint.resolve()}'", *overrides]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {checkpoint} could not be evaluated: {done.stderr.strip().splitlines()[-1]}")
    written = (checkpoint.parents[1] / "evaluation").glob("robustness-*/robustness.json")
    return json.loads(max(written, key=lambda path: path.stat().st_mtime).read_text())  # a finished one is written anew


def show(found: Found, folder: Path) -> None:
    """Print the table, and write it as Markdown with the figure."""
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
    study_figure(found, title=title).savefig(folder / "robustness.png", dpi=130)
    print(folder / "robustness.md", folder / "robustness.png")


def row(method: str, seeds: Sequence[Mapping[str, Any]], robust: Mapping[str, Sequence[float]]) -> list[str]:
    """Mean ± standard deviation over the seeds, and which sanity checks spoke in how many of them."""

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
