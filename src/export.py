"""Write a trained classifier in a format that needs nothing of this project to be read, or only its network's class.

python src/export.py ckpt_path=outputs/.../checkpoints/last.ckpt format=onnx

The file is read again and its predictions are compared before anything is said to be done.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: see train.py

try:
    import hydra
except ModuleNotFoundError as error:  # of another Python
    raise SystemExit(f"error: {error}. Activate the environment: source .venv/bin/activate (make train makes it)") from None

from omegaconf import DictConfig

from vat.runs import folders, report, schema, user_errors
from vat.runs.exporting import export

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Export one checkpoint."""
    with user_errors.readable_errors():
        output = None if cfg.output is None else folders.as_path(cfg.output, "output")
        path = export(folders.as_path(cfg.ckpt_path, "ckpt_path"), cfg.format, output, allow_targets=cfg.allow_targets)
        report.console.print(f"{report.shown(path.absolute())}: read again, its predictions are those of the checkpoint")


if __name__ == "__main__":
    user_errors.run(main)
