"""The scripts that draw the pages' pictures run in a process of their own, in which no other module has made the schemas known."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

SCRIPTS = Path(__file__).parents[2] / "scripts"
PICTURES = {
    "plane_figure.py moons moons.png trainer.max_steps=2": ["moons.png"],
    "page_figures.py . --updates 4": ["calibration.png", "choosing_eps.png", "perturbations.png"],
}


@pytest.mark.parametrize("command", PICTURES)
def test_a_script_draws_its_pictures(command, tmp_path):
    script, *arguments = command.split()
    done = subprocess.run([sys.executable, SCRIPTS / script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == PICTURES[command]
    for name in PICTURES[command]:
        assert imread(tmp_path / name).std() > 0.05  # not a blank sheet
