"""Draw DSVAT's figure: decision boundary and LDS on the plane, for none, random perturbation and VAT.

python scripts/plane_figure.py moons docs/moons.png

It trains each model on the data of seed 0 as `python src/train.py experiment=synthetic_…` does, with DSVAT's ε. A model takes some seconds.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from vat.plots import plane_figure
from vat.runs import records, schema, training

EPS = {"moons": (1.8, 0.6), "circles": (2.8, 0.5)}  # of random perturbation and VAT


def main() -> None:
    """Train the three models and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=EPS)
    parser.add_argument("figure", type=Path)
    parser.add_argument("overrides", nargs="*", help="further options of src/train.py, as trainer.max_steps=20")
    arguments = parser.parse_args()
    random_perturbation, vat = EPS[arguments.data]
    methods = {
        "none": ["regularizer=none"],
        f"random perturbation, ε = {random_perturbation:g}": [
            "regularizer=random_perturbation",
            f"random_perturbation.eps={random_perturbation}",
        ],
        f"VAT, ε = {vat:g}": [f"vat.eps={vat}"],
    }
    schema.register()
    quiet = ["logger=none", "figures=null", "trainer.enable_progress_bar=false", "test=none"]
    shared = [f"experiment=synthetic_{arguments.data}", *quiet, *arguments.overrides]
    networks, data = {}, None
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        for number, (name, overrides) in enumerate(methods.items()):
            cfg = compose("train", overrides=shared + overrides)
            training.train(cfg, Path(folder) / str(number))
            networks[name] = records.load_network(Path(folder) / str(number) / "checkpoints" / "last.ckpt")
            data = instantiate(cfg.data, _convert_="all")  # the same data for all models, because it follows from the seed
    assert data is not None
    data.setup()
    rows = data.split.labeled
    figure = plane_figure(networks, data.z[rows], data.y[rows], data.embedding, eps=data.lds_eps, title=f"{arguments.data}, 16 points")
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.figure, dpi=130)
    print(arguments.figure)


if __name__ == "__main__":
    main()
