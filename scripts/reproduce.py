"""Make a table of docs/results.md or docs/directions.md, which the README summarizes.

python scripts/reproduce.py digits
python scripts/reproduce.py cifar10_4000 trainer=gpu

In some tables, each method has candidates for its hyper-parameter, the same number for every method. The script then chooses one on
validation, with seeds that the table does not use. In the other tables the value is in conf/tuned.yaml. Then the script trains and tests
the table's seeds. The jobs are those of `python src/train.py -m …`. To resume, repeat the command: finished jobs are not repeated.
Overrides after the table's name apply to every job, and the results go to a different folder. With --budget 10m, the jobs save and end
after ten minutes.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from vat.runs.tables import Method, Study, choose, refuse_impossible, run, show

CONTROLS = (
    Method("none", ("regularizer=none",)),
    Method("random perturbation", ("regularizer=random_perturbation",), "random_perturbation.eps"),
    Method("adversarial", ("regularizer=adversarial",), "adversarial.eps"),
)
ADVERSARIAL_LINF = Method("adversarial Linf", ("regularizer=adversarial_linf",), "adversarial.eps")
VAT = Method("VAT", ("regularizer=vat",), "vat.eps")
VAT_ENTROPY = Method("VAT + entropy", ("regularizer=vat_entropy",), "vat.eps")
ENTROPY_MEAN_TEACHER = Method(
    "entropy + mean teacher", ("regularizer=vat_entropy_mean_teacher", "regularizers=[${entropy},${mean_teacher}]")
)
VAT_ENTROPY_MEAN_TEACHER = Method("VAT + entropy + mean teacher", ("regularizer=vat_entropy_mean_teacher",))
CLASS_BALANCE = Method("class balance", ("regularizer=class_balance",))
VAT_CLASS_BALANCE = Method("VAT + class balance", ("regularizer=vat_class_balance",), "vat.eps")
ALL_THREE = Method("VAT + class balance + random perturbation", ("regularizer=vat_class_balance_random_perturbation",), "vat.eps")
WITH_LOGITS = replace(
    ALL_THREE, name="the same, batch norm on the logits", overrides=(*ALL_THREE.overrides, "model.batch_norm_logits=true")
)
BETTER = Method("the better of these two on validation", among=(ALL_THREE.name, WITH_LOGITS.name))


def of_experiment(name: str, seeds: int, *methods: Method, papers: dict[str, str] | None = None, errors: tuple[float, ...] = ()) -> Study:
    """Make a table of conf/experiment/`name`.

    Args:
        name: Name of the experiment.
        seeds: Number of seeds.
        methods: Rows of the table.
        papers: Test errors in the papers, by the name of the method, in %.
        errors: Validation errors in % to which the table has the seconds.
    """
    rows = tuple(replace(method, paper=(papers or {}).get(method.name, "–")) for method in methods)
    return Study(rows, (f"experiment={name}",), tuning_seeds=range(0), seeds=range(seeds), errors=errors)


DIRECTIONS = {
    "finite differences": ("vat", "vat.direction=finite_difference"),  # the first: the table compares the others with it
    "exact": ("vat", "vat.direction=exact"),
    "exact, 2 iterations": ("vat", "vat.direction=exact", "vat.num_power_iterations=2"),
    "exact, 4 iterations": ("vat", "vat.direction=exact", "vat.num_power_iterations=4"),
    "exact, better sign": ("vat", "vat.direction=exact", "vat.choose_sign=true"),
    "ascent": ("vat", "vat.direction=ascent"),
    "margin": ("vat", "vat.direction=margin"),
    "random margin": ("vat", "vat.direction=random_margin"),
    "gradient through r": ("vat", "vat.direction=finite_difference", "vat.gradient_through_r=true"),
    "gradient through the target": ("vat", "vat.direction=finite_difference", "vat.gradient_through_target=true"),
    "published": ("vat_published",),
    "published, ξ = 10": ("vat_published", "vat.xi=10"),
    "published, KL reversed": ("vat_published", "vat.reverse_kl=true"),
    "published, moving statistics": ("vat_published", "vat.move_statistics=true"),
    "published, adversarial entropy": ("vat_published", "vat.adversarial_entropy=1"),
}
"""Regularizer and overrides, by the name of a row."""

MNIST_DIRECTIONS = ("finite differences", "ascent", "margin", "random margin")  # the digits do not decide between these
NO_BETTER = ("published", "published, ξ = 10", "gradient through the target", "gradient through r")
"""Rows that are no better than `MNIST_DIRECTIONS` with 100 labels. They were not tried with more labels."""


def of_directions(
    names: Iterable[str], overrides: tuple[str, ...], eps: tuple[float, ...], *, random: tuple[float, ...], **options: Any
) -> Study:
    """Make a table of directions and controls.

    Args:
        names: Names of the directions.
        overrides: Overrides of all jobs.
        eps: Candidates of the directions' ε.
        random: Candidates of the random control's ε.
        options: Further arguments of `Study`.
    """
    rows = [Method(name, way(name), "vat.eps", eps) for name in names]
    controls = CONTROLS[0], replace(CONTROLS[1], name="random", candidates=random)
    return Study((*rows, *controls), overrides, **options)


def way(name: str) -> tuple[str, ...]:
    """Overrides of a direction, or of the random control."""
    if name == "random":
        return "regularizer=vat", "vat.direction=random"
    return (f"regularizer={DIRECTIONS[name][0]}", *DIRECTIONS[name][1:])


def at_equal_compute(passes: int, costs: Iterable[tuple[str, int, float]], overrides: tuple[str, ...], **options: Any) -> Study:
    """Make a table of directions, each with `passes` / cost updates.

    Args:
        passes: Compute of a job, in forward passes F.
        costs: Name of a direction, its cost of an update in F, and its ε.
        overrides: Overrides of all jobs.
        options: Further arguments of `Study`.
    """
    rows = [
        Method(f"{name}, {passes // cost} updates", (*way(name), f"trainer.max_steps={passes // cost}"), "vat.eps", (eps,))
        for name, cost, eps in costs
    ]
    return Study(tuple(rows), overrides, tuning_seeds=range(0), **options)


SMALL_MLP = ("model=mlp", "model.hidden=[256,256]")
"""The network for the directions on digits."""


def short_mnist(labels: int) -> tuple[str, ...]:
    """Overrides of all MNIST jobs in the study of directions."""
    return ("experiment=mnist", f"data.num_labeled={labels}", "data.batch_size_labeled=50", "data.batch_size_unlabeled=125")


def on_short_mnist(labels: int, names: Iterable[str]) -> Study:
    """Make a table of directions on MNIST with `labels` labels."""
    return of_directions(
        names,
        (*short_mnist(labels), "trainer.max_steps=2000"),
        (0.7, 1.25, 2.2, 4, 7),
        random=(4, 6, 10, 16, 25),
        tuning_seeds=range(100, 101),
        seeds=range(5),
        tuning_overrides=("data.num_validation=10000",),
    )


def with_candidates(study: Study, name: str, values: tuple[float, ...]) -> Study:
    """Replace the candidates of one method of a table. Their number must stay the same."""
    return replace(study, methods=tuple(replace(m, candidates=values) if m.name == name else m for m in study.methods))


STUDIES = {
    "digits": Study(
        (
            Method("none", ("regularizer=none",)),
            Method("random perturbation", ("regularizer=random_perturbation",), "random_perturbation.eps", (1, 2, 4, 8, 16)),
            Method("adversarial", ("regularizer=adversarial",), "adversarial.eps", (0.25, 0.5, 1, 2, 4)),
            replace(ADVERSARIAL_LINF, candidates=(0.03, 0.06, 0.12, 0.25, 0.5)),
            Method("entropy", ("regularizer=entropy",), "entropy.weight", (0.03, 0.1, 0.3, 1, 3)),
            replace(VAT, candidates=(0.25, 0.5, 1, 2, 4)),
            replace(VAT_ENTROPY, candidates=(0.25, 0.5, 1, 2, 4)),
            *(
                Method(f"VAT, {name}", ("regularizer=vat", f"vat.direction={direction}"), "vat.eps", (0.25, 0.5, 1, 2, 4))
                for name, direction in (("power iteration", "finite_difference"), ("margin", "margin"))
            ),
            Method("mean teacher", ("regularizer=mean_teacher",), "mean_teacher.weight", (1, 3, 10, 30, 100)),
        ),
        (),
        tuning_seeds=range(100, 103),
        seeds=range(10),
    ),
    "directions": of_directions(
        DIRECTIONS,
        (*SMALL_MLP, "trainer.max_steps=600"),
        (0.5, 1, 2),
        random=(2, 4, 8),
        tuning_seeds=range(100, 102),
        seeds=range(6),
    ),
    "directions_mnist_100": with_candidates(  # the best ε of this method is below the others' grid
        on_short_mnist(100, (*MNIST_DIRECTIONS, *NO_BETTER)), "gradient through the target", (0.2, 0.4, 0.7, 1.25, 2.2)
    ),
    "directions_mnist_1000": on_short_mnist(1000, MNIST_DIRECTIONS),
    "directions_compute": at_equal_compute(  # ε as chosen in the table directions
        3_600,
        (("finite differences", 6, 1), ("margin", 5, 1), ("random margin", 5, 2), ("random", 4, 4)),
        SMALL_MLP,
        seeds=range(20),
    ),
    "directions_mnist_100_compute": at_equal_compute(  # ε as chosen in directions_mnist_100
        10_000,
        (("finite differences", 6, 7), ("random margin", 5, 1.25), ("random", 4, 10)),
        short_mnist(100),
        seeds=range(5),
    ),
    "directions_mnist_1000_compute": at_equal_compute(  # ε as chosen in directions_mnist_1000
        10_000, (("finite differences", 6, 1.25), ("random margin", 5, 1.25), ("random", 4, 10)), short_mnist(1000), seeds=range(5)
    ),
    "moons": of_experiment("synthetic_moons", 50, *CONTROLS[:2], VAT),
    "circles": of_experiment("synthetic_circles", 50, *CONTROLS[:2], VAT),
    "mnist_supervised": of_experiment(  # the paper's errors are DSVAT's
        "mnist_supervised",
        3,
        *CONTROLS,
        ADVERSARIAL_LINF,
        VAT,
        VAT_ENTROPY,
        papers={
            "none": "1.11 ± 0.06",
            "random perturbation": "0.84 ± 0.03",
            "adversarial": "0.71 ± 0.03",
            "adversarial Linf": "0.79",
            "VAT": "0.64 ± 0.05",
        },
    ),
    "mnist_100": of_experiment(  # the paper's errors from here to svhn_1000 are TPAMI's, except for lines marked DSVAT
        "mnist_100",
        3,
        *CONTROLS,
        ADVERSARIAL_LINF,
        CLASS_BALANCE,
        VAT,
        VAT_ENTROPY,
        VAT_CLASS_BALANCE,
        papers={"random perturbation": "6.81 ± 1.30", "VAT": "1.36 ± 0.03"},
    ),
    "mnist_100_splits": of_experiment(
        "mnist_100", 10, VAT_CLASS_BALANCE, ALL_THREE, WITH_LOGITS, BETTER, papers={BETTER.name: "1.36 ± 0.03"}
    ),
    "mnist_1000": of_experiment("mnist_1000", 3, *CONTROLS, VAT, papers={"random perturbation": "1.58 ± 0.54", "VAT": "1.27 ± 0.11"}),
    "mnist_600": of_experiment("mnist_600", 3, *CONTROLS, VAT, papers={"VAT": "1.39"}),  # DSVAT
    "mnist_3000": of_experiment("mnist_3000", 3, *CONTROLS, VAT, papers={"VAT": "1.25"}),  # DSVAT
    "cifar10_4000_cpu": of_experiment(
        "cifar10_4000_cpu",
        3,
        CONTROLS[0],
        VAT,
        VAT_ENTROPY,
        ENTROPY_MEAN_TEACHER,
        VAT_ENTROPY_MEAN_TEACHER,
        errors=(16.0, 13.9, 11.4),
    ),
    "cifar10_4000": of_experiment(
        "cifar10_4000",
        3,
        *CONTROLS,
        VAT,
        VAT_ENTROPY,
        papers={"VAT": "11.36 ± 0.34", "VAT + entropy": "10.55 ± 0.05"},
        errors=(13.9, 11.4, 10.55),
    ),
    "cifar10_4000_noaug": of_experiment(
        "cifar10_4000_noaug", 3, *CONTROLS, VAT, VAT_ENTROPY, papers={"VAT": "14.18 ± 0.38", "VAT + entropy": "13.15 ± 0.21"}
    ),
    "svhn_1000": of_experiment("svhn_1000", 3, *CONTROLS, VAT, VAT_ENTROPY, papers={"VAT": "5.42 ± 0.22", "VAT + entropy": "3.86 ± 0.11"}),
    "norb_1000": of_experiment("norb_1000", 3, *CONTROLS, VAT, papers={"VAT": "9.88"}),  # DSVAT
}


def seconds(budget: str) -> float:
    """Parse a time such as 90s, 10m or 2h to seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"must be a time > 0 such as 90s, 10m or 2h, got {budget}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=STUDIES)
    parser.add_argument("overrides", nargs="*", help="further overrides of every job, as trainer=gpu")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="folder of jobs and tables")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="parallel jobs, with one thread each")
    parser.add_argument("--show", action="store_true", help="run nothing: print the table of the finished jobs")
    parser.add_argument(
        "--budget", type=seconds, metavar="TIME", help="time such as 90s, 10m or 2h after which the jobs end; to resume, repeat the command"
    )
    arguments = parser.parse_intermixed_args()
    until = None if arguments.budget is None else time.monotonic() + arguments.budget
    if arguments.jobs < 1:
        parser.error(f"--jobs must be >= 1, got {arguments.jobs}")
    study = STUDIES[arguments.table]
    study = replace(study, overrides=(*study.overrides, *arguments.overrides))
    if arguments.overrides and not arguments.show:
        refuse_impossible(study)
    folder = arguments.folder / re.sub(r"\W+", "_", "-".join([arguments.table, *arguments.overrides]))

    if study.tuning_seeds and not arguments.show:
        pending = [(m, study.tuning_seeds, m.candidates, ("test=none", *study.tuning_overrides)) for m in study.methods if m.tuned]
        run(study, pending, folder / "tuning", arguments.jobs, until)
    chosen = {m.name: choose(m, folder / "tuning", study.tuning_seeds) for m in study.methods}
    if not arguments.show:
        run(study, [(m, study.seeds, (chosen[m.name],), ()) for m in study.trained], folder / "test", arguments.jobs, until)
    show(study, chosen, folder)


if __name__ == "__main__":
    main()
