"""Draw pictures for the pages: examples of r, calibration with and without VAT, error and score against ε.

python scripts/page_figures.py docs

The script trains the main job (digits, 50 labels, ε = 2, seed 0) with and without VAT, and the networks of `choosing_eps.py` on three
splits of the digits. This takes less than a minute on a CPU core.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import choosing_eps
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from PIL import Image

from vat import VAT
from vat.evaluation.choosing import MOST_KL
from vat.lightning.figures import draw
from vat.plots.style import COLOURS, new_figure, tidy
from vat.runs import records, report, schema, training

EPS, UPDATES, SPLITS = 2.0, 1000, 3


def of_the_main_job(regularizer: str, updates: int) -> dict[str, Figure]:
    """Train `python src/train.py model=cnn vat.eps=2.0`, or the same without VAT, and draw its figures of the test examples."""
    chosen = [f"regularizer={regularizer}", *([f"vat.eps={EPS}"] if regularizer == "vat" else [])]
    shared = ["model=cnn", "logger=none", "figures=null", "trainer.enable_progress_bar=false", "test=none", f"trainer.max_steps={updates}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        cfg = compose("train", overrides=[*shared, *chosen])
        training.train(cfg, Path(folder))
        network = records.load_network(Path(folder) / "checkpoints" / "last.ckpt")
        data = instantiate(cfg.data, _convert_="all")
    data.setup()
    return draw(network, data, "test", VAT(EPS))


def side_by_side(figures: dict[str, Figure], path: Path) -> None:
    """Save figures as one PNG, with their names in the titles."""
    pictures = []
    for name, figure in figures.items():
        axes = figure.axes[0]
        axes.set_title(axes.get_title().replace("Reliability", name))
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=90)
        pictures.append(Image.open(file).convert("RGB"))
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (sum(p.width for p in pictures[:number]), 0))
    whole.save(path, optimize=True)


def error_and_score(splits: list[list[dict[str, Any]]]) -> Figure:
    """Plot test error, and the KL at a random r that decides the radius, against ε: mean and standard deviation over the splits.

    Args:
        splits: Rows of each split, in order of the radius; the first is without VAT.
    """
    figure = new_figure(6, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    radii = [mean(rows[i]["eps"] for rows in splits) for i in range(len(splits[0]))]
    for axes, key, factor, colour in ((tidy(upper), "test_error", 100, COLOURS[0]), (tidy(lower), "kl_random", 1, COLOURS[2])):
        values = [[factor * rows[i][key] for rows in splits] for i in range(len(radii))]
        spread = [stdev(v) for v in values[1:]]
        axes.errorbar(radii[1:], [mean(v) for v in values[1:]], yerr=spread, marker="o", capsize=2.5, color=colour, label="VAT")
        if key == "test_error":
            axes.axhline(mean(values[0]), color="#555555", linestyle="--", label="without VAT")
    chosen = mean(rows[choosing_eps.largest("kl_random", MOST_KL)(rows)]["eps"] for rows in splits)
    default = mean(0.3 * rows[0]["nearest_of_group"] for rows in splits)
    for axes in (upper, lower):
        axes.axvline(default, color=COLOURS[1], label="default ε")
        axes.axvline(chosen, color=COLOURS[3], linestyle="-.", label="ε that the rule takes")
    lower.axhline(MOST_KL, color="#555555", linestyle=":", label=f"the rule's limit, {MOST_KL:g} nats")
    upper.set(xscale="log", ylabel="test error, %", title=f"Digits, 50 labels, {len(splits)} splits")
    upper.set_ylim(bottom=0)
    lower.set(yscale="log", ylabel="KL at a random r, nats", xlabel="ε, standard deviations of the pixels")
    lower.set_xticks(radii[1:], [f"{eps:.2g}" for eps in radii[1:]])
    lower.set_xticks([], minor=True)
    for axes in (upper, lower):
        axes.legend(frameon=False, fontsize=8.5)
    return figure


def main() -> None:
    """Train the networks and draw three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=UPDATES, help="updates of the main job; the small networks take a third")
    arguments = parser.parse_args()
    folder, small = arguments.folder, max(1, 320 * arguments.updates // UPDATES)
    folder.mkdir(parents=True, exist_ok=True)
    schema.register()
    report.console.quiet = True
    none, vat = (of_the_main_job(regularizer, arguments.updates) for regularizer in ("none", "vat"))
    vat["perturbations"].savefig(folder / "perturbations.png", dpi=90)
    side_by_side({"without VAT": none["reliability"], f"VAT, ε = {EPS:g}": vat["reliability"]}, folder / "calibration.png")
    splits = [choosing_eps.rows_of(choosing_eps.train("digits", split, small, Path()), "vat") for split in range(SPLITS)]
    error_and_score([list(rows) for rows in splits]).savefig(folder / "choosing_eps.png", dpi=90)
    for name in ("perturbations", "calibration", "choosing_eps"):
        print(f"{folder / name}.png: {(folder / f'{name}.png').stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
