"""Evaluate a trained classifier: clean accuracy, calibration, smoothness, and robustness to attacks and corruptions.

python src/evaluate.py ckpt_path=outputs/.../checkpoints/last.ckpt
python src/evaluate.py ckpt_path=... data=mnist attack=pgd pgd.steps=200 eps.linf=[0.1,0.2,0.3]

The results are in `evaluation/` in the run's folder. To resume an interrupted evaluation, repeat the command.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported: see train.py

from collections.abc import Callable

try:
    import hydra
except ModuleNotFoundError as error:  # of another Python
    raise SystemExit(f"error: {error}. Activate the environment: source .venv/bin/activate (make train makes it)") from None

from omegaconf import DictConfig

from vat.functional import by_name
from vat.runs import direction_report, report, robustness_report, schema, user_errors
from vat.runs.subject import Subject, subject

REPORTS: dict[str, Callable[[DictConfig, Subject], None]] = {
    "robustness": robustness_report.robustness_report,
    "direction": direction_report.on_direction,
}
"""Values of `report=`."""

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate one checkpoint."""
    with user_errors.readable_errors():
        make = by_name("report", REPORTS, cfg.report)
        of = subject(cfg)
        make(cfg, of)
        report.link_evaluations(of.run)


if __name__ == "__main__":
    user_errors.run(main, without_choice=("data",))
