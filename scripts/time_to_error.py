"""Measure the CPU seconds until VAT, and the most copied port, reach an error, for each of several splits.

python scripts/time_to_error.py digits --seeds 10
python scripts/time_to_error.py mnist --seeds 3 --steps 4000 --errors 20 10 5 3
python scripts/time_to_error.py cifar10 --seeds 1 --steps 1000 --errors 40 35 30

Each method trains its own copy of one network on the same batches. The methods take turns of 50 steps, and only the seconds of these steps
count. The error is the validation error, as a mean over the last five readings. The first target is the lowest error of the port as
shipped, and the others are given. A port that does not reach a target counts with all its seconds, so its ratio is a lower bound.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmark import shipped_port, tuned_port
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vat import VAT
from vat.data.datamodule import ResidentDataModule
from vat.data.loader import as_input
from vat.data.sets.cifar import CIFAR10
from vat.data.sets.digits import Digits
from vat.data.sets.mnist import MNIST
from vat.models import CNN, MLP
from vat.runs import records, training

CHUNK, READINGS = 50, 5
OURS, PORT, TUNED_PORT = "this project", "port, as shipped", "port, our eps, no weight gradients"
Course = dict[str, list[float]]
"""The seconds of training and the validation error in %, at each reading."""


@dataclass(frozen=True)
class Setting:
    """A data set with the network and the ε of its experiment, and the examples of a batch."""

    data: Callable[[int], ResidentDataModule]
    network: Callable[[ResidentDataModule], nn.Module]
    eps: float
    labeled: int = 50
    unlabeled: int = 128


def _whitened_cnn(data: ResidentDataModule) -> nn.Module:
    model = OmegaConf.create({"_target_": "vat.models.WhitenedCNN", "widths": [64, 128, 256]})
    network = records.make_network(model, records.describe(data))
    training.whiten_from(network, data)
    return network


SETTINGS = {
    "digits": Setting(lambda seed: Digits(seed=seed), lambda data: CNN(data.input_shape, 10), eps=2.0),
    "mnist": Setting(
        lambda seed: MNIST(seed=seed, num_validation=10_000), lambda data: MLP(data.input_shape, 10, hidden=(600, 300, 150)), eps=1.5
    ),
    "cifar10": Setting(
        lambda seed: CIFAR10(num_labeled=4000, seed=seed, translate=3, num_validation=2000), _whitened_cnn, 1.0, labeled=64, unlabeled=64
    ),
}


def run(setting: Setting, seed: int, steps: int) -> dict[str, Course]:
    """Train each method; return the course of each."""
    data = setting.data(seed)
    data.batch_size_labeled, data.batch_size_unlabeled, data.steps_per_epoch = setting.labeled, setting.unlabeled, steps
    data.setup()
    torch.manual_seed(seed)
    start = setting.network(data)
    vat = VAT(setting.eps)
    penalties: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        OURS: lambda model, x: vat(model, x),
        PORT: shipped_port,
        TUNED_PORT: lambda model, x: tuned_port(model, x, eps=setting.eps),
    }
    networks = {method: copy.deepcopy(start) for method in penalties}
    optimizers = {method: torch.optim.Adam(model.parameters(), lr=0.002, fused=True) for method, model in networks.items()}
    courses: dict[str, Course] = {method: {"seconds": [], "errors": []} for method in penalties}
    seconds = dict.fromkeys(penalties, 0.0)
    x_val, y_val = as_input(data.x[data.split.validation]), data.y[data.split.validation]
    batches = iter(data.train_dataloader())
    for _ in range(steps // CHUNK):
        chunk = [next(batches) for _ in range(CHUNK)]
        for method, penalty in penalties.items():
            model = networks[method].train()
            began = time.process_time()
            for batch in chunk:
                assert batch.unlabeled is not None
                assert batch.labeled.y is not None
                smooth = penalty(model, torch.cat([batch.labeled.x, batch.unlabeled.x]))  # first: the port erases gradients
                loss = cross_entropy(model(batch.labeled.x), batch.labeled.y) + smooth
                optimizers[method].zero_grad()
                loss.backward()
                optimizers[method].step()
            seconds[method] += time.process_time() - began
            model.eval()
            with torch.no_grad():
                predicted = torch.cat([model(x).argmax(1) for x in x_val.split(1000)])
            courses[method]["seconds"].append(seconds[method])
            courses[method]["errors"].append(100 * float((predicted != y_val).double().mean()))
    return courses


def readings(course: Course) -> list[tuple[float, float]]:
    """The seconds at each reading from the fifth on, with the mean error of the last five."""
    ends = range(READINGS, len(course["errors"]) + 1)
    return [(course["seconds"][end - 1], statistics.mean(course["errors"][end - READINGS : end])) for end in ends]


def seconds_to(target: float, course: Course) -> float | None:
    """Seconds until the error is at most `target`; None if it never is."""
    return next((seconds for seconds, error in readings(course) if error <= target), None)


def times_as_soon(target: float, course: Course, port: Course) -> float:
    """Seconds of the port, all of them if it does not reach the target, as a multiple of a method's; 0 if the method does not reach it."""
    own = seconds_to(target, course)
    return 0.0 if own is None else (seconds_to(target, port) or port["seconds"][-1]) / own


def main() -> None:
    """Print a line for each split, then the median ratio of each method at each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=5, help="number of splits")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each method")
    parser.add_argument("--errors", type=float, nargs="*", default=[], metavar="PERCENT", help="further targets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[tuple[str, str], list[float]] = {}
    for seed in range(arguments.seeds):
        courses = run(SETTINGS[arguments.set], seed, arguments.steps)
        lowest = min(error for _, error in readings(courses[PORT]))
        targets = {"the port's lowest": lowest} | {f"{error:g} %": error for error in arguments.errors}
        for method, course in courses.items():
            needed = {name: seconds_to(target, course) for name, target in targets.items()}
            all_seconds, final = readings(course)[-1]
            line = {"seed": seed, "method": method, "seconds to": needed, "final": final, "all seconds": all_seconds}
            print(json.dumps(line | {"the port's lowest": lowest}), flush=True)
            for name, target in targets.items():
                ratios.setdefault((name, method), []).append(times_as_soon(target, course, courses[PORT]))
    for (name, method), values in ratios.items():
        middle = statistics.median(values)
        print(f"{name:18} {method:36} {middle:5.1f} times as soon ({min(values):.1f} to {max(values):.1f}), n = {len(values)}")


if __name__ == "__main__":
    main()
