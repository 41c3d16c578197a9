"""Export a trained classifier. To read the file you need nothing of this project, or only the class of the network.

python src/export.py ckpt_path=outputs/.../checkpoints/last.ckpt format=onnx

The command reads the file again and compares its predictions with the checkpoint's.
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
from vat.runs.exporting import export, input_lines

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Export one checkpoint."""
    with user_errors.readable_errors():
        output = None if cfg.output is None else files.as_path(cfg.output, "output")
        path, told = export(files.as_path(cfg.ckpt_path, "ckpt_path"), cfg.format, output, allow_targets=cfg.allow_targets)
        report.console.print(f"{report.shown(path.absolute())}: checked, its predictions are the checkpoint's")
        report.console.print(input_lines(told))


if __name__ == "__main__":
    user_errors.run(main)
