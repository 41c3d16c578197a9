"""The seed inputs of the readers, both good and odd files, reach every branch of every parser. Damaged files do not count."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEEDS = (
    *(f"tests/data/files/test_{name}.py" for name in ("content", "image_files", "names", "rows", "texts")),
    *(f"tests/data/sets/test_{name}.py" for name in ("mnist", "cifar", "norb", "svhn")),
    *(f"tests/data/own/test_{name}.py" for name in ("arrays", "images", "image_labels")),
    "tests/runs/test_checkpoints.py",
)
ALL = None
PARSERS = {
    "vat/data/files/content.py": ALL,
    "vat/data/files/idx.py": ALL,
    "vat/data/files/names.py": ALL,
    "vat/data/files/npz.py": ALL,
    "vat/data/files/rows.py": ALL,
    "vat/data/files/texts.py": ALL,
    "vat/data/files/words.py": ALL,
    "vat/data/sets/labels.py": ALL,
    "vat/data/sets/cifar.py": ("read_records", "read_archive", "_tar_entry"),
    "vat/data/sets/norb.py": ("read_images", "read_integers", "_count"),
    "vat/data/files/matlab.py": ALL,
    "vat/data/sets/svhn.py": ("read_svhn",),
    "vat/data/files/tables.py": ALL,
    "vat/data/own/images.py": ("find_images", "_labelled_by_table", "images_within", "_files_within", "_group"),
    "vat/data/own/image_labels.py": ALL,
    "vat/data/files/image_files.py": (
        *("read_image", "check_header", "_read", "_opened", "without_notes", "_converted", "_over_a_background", "_of_eight_bits"),
    ),
    "vat/runs/checkpoints.py": ("read_checkpoint", "newest_whole"),
}
"""Files in `src/`, and their functions that parse."""


@pytest.mark.long  # runs the readers' tests again, in a separate process
def test_every_branch_of_every_parser_is_reached(tmp_path, record_property):
    source = ",".join(str(ROOT / "src" / name) for name in PARSERS)
    coverage = [sys.executable, "-m", "coverage"]
    data = os.environ | {"COVERAGE_FILE": str(tmp_path / "coverage")}
    quick = ["-m", "pytest", "-k", "not spoilt", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'seeds'}", *SEEDS]
    ran = subprocess.run([*coverage, "run", "--branch", f"--include={source}", *quick], cwd=ROOT, env=data, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    subprocess.run([*coverage, "json", "-q", "-o", str(tmp_path / "report.json")], cwd=ROOT, env=data, check=True)
    files = json.loads((tmp_path / "report.json").read_text())["files"]
    missed, reached = {}, 0
    for name, functions in PARSERS.items():
        (parts,) = (file["functions"] for path, file in files.items() if path.endswith(f"src/{name}"))
        for function in functions or parts:
            found = parts[function]
            reached += found["summary"]["covered_branches"]
            if found["missing_branches"] or found["missing_lines"]:
                missed[f"{name}: {function}"] = found["missing_branches"] or found["missing_lines"]
    assert missed == {}
    record_property("branches of parsers, all reached", reached)
