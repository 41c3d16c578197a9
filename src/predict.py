"""Predict the class of images or rows of features, as CSV.

python src/predict.py ckpt_path=outputs/.../checkpoints/last.ckpt input=photos output=predictions.csv
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: see train.py

try:
    import hydra
except ModuleNotFoundError as error:  # of another Python
    raise SystemExit(f"error: {error}. Activate the environment: source .venv/bin/activate (make train makes it)") from None

from omegaconf import DictConfig

from vat import files
from vat.runs import report, schema, user_errors
from vat.runs.predicting import predict

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Write the predictions of one checkpoint."""
    with user_errors.readable_errors():
        number = predict(
            *(files.as_path(cfg[key], key) for key in ("ckpt_path", "input", "output")),
            chances=cfg.probabilities,
            name=cfg.id,
            overwrite=cfg.overwrite,
            batch_size=cfg.batch_size,
            device=cfg.device,
            allow_targets=cfg.allow_targets,
        )
        report.console.print(f"{cfg.output}: {number} predictions")


if __name__ == "__main__":
    user_errors.run(main)
