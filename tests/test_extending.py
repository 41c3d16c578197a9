"""Every block of docs/extending.md works: the test writes the files into an empty folder and runs the commands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SHORT = {
    "train": ("trainer.max_steps=10", "data.steps_per_epoch=5", "logger=none", "figures=null", "trainer.enable_progress_bar=false"),
    "evaluate": ("limit=20", "norms=[l2]"),
}


def test_every_block_of_the_page_is_run_in_order(tmp_path, monkeypatch, capsys):
    import evaluate
    import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    ran = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL):
        if language == "bash":
            for line in block.splitlines():
                _, script, *overrides = shlex.split(line)
                entry = {"src/train.py": train, "src/evaluate.py": evaluate}[script]
                argv = [script, "--config-path", str(ROOT / "conf"), *overrides, *SHORT[Path(script).stem]]
                monkeypatch.setattr(sys, "argv", [*argv, "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"])
                entry.main()
                ran.append(line)
        else:
            path = tmp_path / re.search(r"^# file: (\S+)$", block, flags=re.MULTILINE)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")
    assert len(ran) == 6
    for name in ("penalised", "own_network", "own_data", "own_direction"):
        assert (tmp_path / name / "metrics.json").exists()
    assert len(list(tmp_path.glob("*/evaluation/*/robustness.json"))) == 2


@pytest.mark.parametrize("path", re.findall(r"`((?:src|conf|tests)/[\w./]*)`", PAGE))
def test_a_path_on_the_page_exists(path):
    assert (ROOT / path).exists()
