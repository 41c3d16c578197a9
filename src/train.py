"""Train a classifier with VAT.

python src/train.py model=cnn vat.eps=2.0
python src/train.py -m vat.eps=0.5,1,2,4 seed=0,1,2
"""

import os

# Set before the import of torch: how often its threads look for work before they sleep. 3000 is about the time between two operations of
# Python. By default threads look for so long that busy processes slow each other down: with three processes on two cores, a step of
# MNIST's perceptron took up to 1,440 ms, and with 3000 it takes 68 to 87 ms. With 0, an idle machine is half as fast: 42 to 43 ms, with
# 3000 it takes 22 to 27 ms.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import math
from pathlib import Path

try:
    import hydra
except ModuleNotFoundError as error:  # of another Python
    raise SystemExit(f"error: {error}. Activate the environment: source .venv/bin/activate (make train makes it)") from None

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vat.runs import folders, report, schema, sweeps, training, user_errors

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one job in the folder that Hydra made for it.

    Returns:
        The validation error, which a sweep minimises.
    """
    folder = report.shown(Path(HydraConfig.get().runtime.output_dir))
    with user_errors.readable_errors():
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return sweeps.job(cfg, folder, training.train)
        if choice := HydraConfig.get().runtime.choices.get("sweep"):
            raise ValueError(f"sweep={choice} is for several jobs: add -m, as python src/train.py -m sweep={choice}")
        metrics = training.train(cfg, folder, folders.find_checkpoint(cfg))
    return 1 - metrics.get("val/accuracy", math.nan)


if __name__ == "__main__":
    user_errors.run(main)
