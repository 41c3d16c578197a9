"""Make a table of docs/results.md or docs/directions.md, which the README sums up.

python scripts/reproduce.py digits
python scripts/reproduce.py cifar10_4000 trainer=gpu

Where a method has candidates for its one hyper-parameter, it is chosen on validation, on seeds that the table does not use, from equally
many values for every method; elsewhere it stands in conf/tuned.yaml. Then the table's seeds are trained and tested. Jobs are those of
`python src/train.py -m …`; one that is done is not done again and one that was interrupted goes on, by the same command. Overrides
after the table's name go to every job, and their results to another folder. With --budget 10m the jobs are told to save and end after
ten minutes: the same command resumes them.
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
CLASS_BALANCE = Method("class balance", ("regularizer=class_balance",))
VAT_CLASS_BALANCE = Method("VAT + class balance", ("regularizer=vat_class_balance",), "vat.eps")
ALL_THREE = Method("VAT + class balance + random perturbation", ("regularizer=vat_class_balance_random_perturbation",), "vat.eps")
WITH_LOGITS = replace(
    ALL_THREE, name="the same, batch norm on the logits", overrides=(*ALL_THREE.overrides, "model.batch_norm_logits=true")
)
BETTER = Method("the better of these two on validation", among=(ALL_THREE.name, WITH_LOGITS.name))


def of_experiment(name: str, seeds: int, *methods: Method, papers: dict[str, str] | None = None) -> Study:
    """A table of conf/experiment/`name`, the test errors that the papers report by the names of the methods."""
    rows = tuple(replace(method, paper=(papers or {}).get(method.name, "–")) for method in methods)
    return Study(rows, (f"experiment={name}",), tuning_seeds=range(0), seeds=range(seeds))


DIRECTIONS = {
    "finite differences": ("vat", "vat.direction=finite_difference"),  # the others are compared with the first
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
"""Regularizer and overrides by the name of a row."""

MNIST_DIRECTIONS = ("finite differences", "ascent", "margin", "random margin")  # what the digits leave open
NO_BETTER = ("published", "published, ξ = 10", "gradient through the target", "gradient through r")
"""Than those, with 100 labels, and not tried with more."""


def of_directions(
    names: Iterable[str], overrides: tuple[str, ...], eps: tuple[float, ...], *, random: tuple[float, ...], **options: Any
) -> Study:
    """A table of directions with the candidates of their ε, beside the controls with those of the random one."""
    rows = [Method(name, way(name), "vat.eps", eps) for name in names]
    controls = CONTROLS[0], replace(CONTROLS[1], name="random", candidates=random)
    return Study((*rows, *controls), overrides, **options)


def way(name: str) -> tuple[str, ...]:
    """The overrides of a direction, or of the random control."""
    if name == "random":
        return "regularizer=vat", "vat.direction=random"
    return (f"regularizer={DIRECTIONS[name][0]}", *DIRECTIONS[name][1:])


def at_equal_compute(passes: int, costs: Iterable[tuple[str, int, float]], overrides: tuple[str, ...], **options: Any) -> Study:
    """A table of (direction, its cost in F, ε), each with as many updates as `passes` of F pay for."""
    rows = [
        Method(f"{name}, {passes // cost} updates", (*way(name), f"trainer.max_steps={passes // cost}"), "vat.eps", (eps,))
        for name, cost, eps in costs
    ]
    return Study(tuple(rows), overrides, tuning_seeds=range(0), **options)


SMALL_MLP = ("model=mlp", "model.hidden=[256,256]")
"""The network of the directions on digits."""


def short_mnist(labels: int) -> tuple[str, ...]:
    """What the MNIST jobs of the study of directions share."""
    return ("experiment=mnist", f"data.num_labeled={labels}", "data.batch_size_labeled=50", "data.batch_size_unlabeled=125")


def on_short_mnist(labels: int, names: Iterable[str]) -> Study:
    """A table of directions on MNIST with so many labels."""
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
    """The table with other candidates, as many as before, for one of its methods."""
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
    "directions_mnist_100": with_candidates(  # its best lies below the others' grid
        on_short_mnist(100, (*MNIST_DIRECTIONS, *NO_BETTER)), "gradient through the target", (0.2, 0.4, 0.7, 1.25, 2.2)
    ),
    "directions_mnist_1000": on_short_mnist(1000, MNIST_DIRECTIONS),
    "directions_compute": at_equal_compute(  # the ε that directions chose
        3_600,
        (("finite differences", 6, 1), ("margin", 5, 1), ("random margin", 5, 2), ("random", 4, 4)),
        SMALL_MLP,
        seeds=range(20),
    ),
    "directions_mnist_100_compute": at_equal_compute(  # those of directions_mnist_100
        10_000,
        (("finite differences", 6, 7), ("random margin", 5, 1.25), ("random", 4, 10)),
        short_mnist(100),
        seeds=range(5),
    ),
    "directions_mnist_1000_compute": at_equal_compute(  # those of directions_mnist_1000
        10_000, (("finite differences", 6, 1.25), ("random margin", 5, 1.25), ("random", 4, 10)), short_mnist(1000), seeds=range(5)
    ),
    "moons": of_experiment("synthetic_moons", 50, *CONTROLS[:2], VAT),
    "circles": of_experiment("synthetic_circles", 50, *CONTROLS[:2], VAT),
    "mnist_supervised": of_experiment(  # DSVAT
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
    "mnist_100": of_experiment(  # from here to SVHN TPAMI
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
    "mnist_3000": of_experiment("mnist_3000", 3, *CONTROLS, VAT, papers={"VAT": "1.25"}),
    "cifar10_4000_cpu": of_experiment("cifar10_4000_cpu", 3, CONTROLS[0], VAT),
    "cifar10_4000": of_experiment(
        "cifar10_4000", 3, *CONTROLS, VAT, VAT_ENTROPY, papers={"VAT": "11.36 ± 0.34", "VAT + entropy": "10.55 ± 0.05"}
    ),
    "cifar10_4000_noaug": of_experiment(
        "cifar10_4000_noaug", 3, *CONTROLS, VAT, VAT_ENTROPY, papers={"VAT": "14.18 ± 0.38", "VAT + entropy": "13.15 ± 0.21"}
    ),
    "svhn_1000": of_experiment("svhn_1000", 3, *CONTROLS, VAT, VAT_ENTROPY, papers={"VAT": "5.42 ± 0.22", "VAT + entropy": "3.86 ± 0.11"}),
    "norb_1000": of_experiment("norb_1000", 3, *CONTROLS, VAT, papers={"VAT": "9.88"}),  # DSVAT
}


def seconds(budget: str) -> float:
    """The seconds of a time as 90s, 10m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{budget}: must be a time > 0 as 90s, 10m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=STUDIES)
    parser.add_argument("overrides", nargs="*", help="further overrides of every job, as trainer=gpu")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where jobs and tables are kept")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="jobs at a time, of one thread each")
    parser.add_argument("--show", action="store_true", help="run nothing: print the table of what is done")
    parser.add_argument(
        "--budget", type=seconds, metavar="TIME", help="as 90s, 10m or 2h: end the jobs then; the same command resumes them"
    )
    arguments = parser.parse_intermixed_args()
    until = None if arguments.budget is None else time.monotonic() + arguments.budget
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: must be at least 1")
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
