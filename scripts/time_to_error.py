"""Measure the CPU seconds until VAT reaches the error of the most copied port, for each of several splits.

python scripts/time_to_error.py digits --seeds 10
python scripts/time_to_error.py mnist --seeds 3 --steps 4000

Each method trains its own copy of one network on the same batches. The methods take turns of 50 steps, and only the seconds of these steps
count. The error is the validation error, as a mean over the last five readings. The target is the final error of the port as shipped.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from benchmark import shipped_port, tuned_port
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vat import VAT
from vat.data.sets.digits import Digits
from vat.data.sets.mnist import MNIST
from vat.models import CNN, MLP

CHUNK, READINGS = 50, 5
SETS = {
    "digits": (lambda seed: Digits(seed=seed), lambda shape: CNN(shape, 10), 2.0),
    "mnist": (lambda seed: MNIST(seed=seed, num_validation=10_000), lambda shape: MLP(shape, 10, hidden=(600, 300, 150)), 1.5),
}
"""Data, network, and the ε of the project's experiments."""


def run(name: str, seed: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Train each method; return its seconds of training and its validation error at each reading."""
    make, network, eps = SETS[name]
    data = make(seed)
    data.batch_size_labeled, data.batch_size_unlabeled, data.steps_per_epoch = 50, 128, steps
    data.setup()
    torch.manual_seed(seed)
    start = network(data.input_shape)
    vat = VAT(eps)
    penalties: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        "this project": lambda model, x: vat(model, x),
        "port, as shipped": shipped_port,
        "port, our eps, no weight gradients": lambda model, x: tuned_port(model, x, eps=eps),
    }
    networks = {method: copy.deepcopy(start) for method in penalties}
    optimizers = {method: torch.optim.Adam(model.parameters(), lr=0.002, fused=True) for method, model in networks.items()}
    found: dict[str, dict[str, list[float]]] = {method: {"seconds": [], "errors": []} for method in penalties}
    seconds = dict.fromkeys(penalties, 0.0)
    x_val, y_val = data.x[data.split.validation], data.y[data.split.validation]
    x_val = x_val.float() / 255 if x_val.dtype == torch.uint8 else x_val
    batches = iter(data.train_dataloader())
    for _ in range(steps // CHUNK):
        chunk = [next(batches) for _ in range(CHUNK)]
        for method, penalty in penalties.items():
            model = networks[method].train()
            began = time.process_time()
            for batch in chunk:
                assert batch.unlabeled is not None
                smooth = penalty(model, torch.cat([batch.labeled.x, batch.unlabeled.x]))  # first: the port erases gradients
                loss = cross_entropy(model(batch.labeled.x), batch.labeled.y) + smooth
                optimizers[method].zero_grad()
                loss.backward()
                optimizers[method].step()
            seconds[method] += time.process_time() - began
            with torch.no_grad():
                wrong = (model.eval()(x_val).argmax(1) != y_val).double().mean()
            found[method]["seconds"].append(seconds[method])
            found[method]["errors"].append(100 * float(wrong))
    return found


def seconds_to(target: float, course: dict[str, list[float]]) -> float:
    """Seconds until the mean of the last five readings is at most `target`; infinite if it never is."""
    errors = course["errors"]
    for end in range(READINGS, len(errors) + 1):
        if statistics.mean(errors[end - READINGS : end]) <= target:
            return course["seconds"][end - 1]
    return float("inf")


def main() -> None:
    """Print a line for each split, then the median ratio of each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--seeds", type=int, default=5, help="number of splits")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each method")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        found = run(arguments.set, seed, arguments.steps)
        target = statistics.mean(found["port, as shipped"]["errors"][-READINGS:])
        times = {method: seconds_to(target, course) for method, course in found.items()}
        final = {method: round(statistics.mean(course["errors"][-READINGS:]), 2) for method, course in found.items()}
        whole = {method: round(course["seconds"][-1], 1) for method, course in found.items()}
        print(json.dumps({"seed": seed, "target": round(target, 2), "seconds to it": times, "final": final, "all": whole}), flush=True)
        for method, needed in times.items():
            ratios.setdefault(method, []).append(times["port, as shipped"] / needed)
    for method, values in ratios.items():
        print(f"{method:36} {statistics.median(values):5.1f} times as fast ({min(values):.1f} to {max(values):.1f}), n = {len(values)}")


if __name__ == "__main__":
    main()
