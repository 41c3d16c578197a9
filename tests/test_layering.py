"""Imports point one way. The tests read the sources, so the rules also apply to new files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

# Each module has a number. A module may import its own package, and modules whose number is smaller than its own.
FLOORS = {
    "vat.seeds": 0,
    "vat.files": 0,
    "vat.functional": 1,
    "vat.norms": 2,
    "vat.forward_mode": 1,
    "vat.precision": 1,
    "vat.network": 1,
    "vat.layers": 0,
    "vat.random_state": 0,
    "vat.calls": 2,
    "vat.counting": 3,
    "vat.step": 4,
    "vat.models": 1,
    "vat.data": 1,
    "vat.batch_norm": 1,
    "vat.reference": 1,
    "vat.schedule": 1,
    "vat.checks": 5,
    "vat.directions": 6,
    "vat.regularizers": 7,
    "vat": 8,  # its __init__ imports the core
    "vat.huggingface": 9,
    "vat.attacks": 9,
    "vat.evaluation": 10,
    "vat.plots": 10,
    "vat.lightning": 11,
    "vat.runs": 12,  # all that imports Hydra
}
CORE = (
    "vat",
    "vat.seeds",
    "vat.functional",
    "vat.norms",
    "vat.forward_mode",
    "vat.precision",
    "vat.reference",
    "vat.network",
    "vat.layers",
    "vat.random_state",
    "vat.calls",
    "vat.checks",
    "vat.counting",
    "vat.step",
    "vat.directions",
    "vat.regularizers",
)
OUTSIDE = {"torch", "vat", *sys.stdlib_module_names}


def area(module):
    """The name in FLOORS to which `module` belongs, or its first two parts."""
    return ".".join(module.split(".")[:2])


def sources():
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(module, source):
    """Absolute names of everything that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which this test does not read"
            folder = SRC.joinpath(*node.module.split("."))  # if it is a package: a submodule, or a name in the package
            submodules = {a.name for a in node.names if (folder / f"{a.name}.py").exists() or (folder / a.name).is_dir()}
            yield from (f"{node.module}.{name}" for name in submodules)
            if len(submodules) < len(node.names):
                yield node.module


def violations(found):
    wrong = []
    for module, source in found.items():
        inside = module.split(".")[0] == "vat"
        if inside and area(module) not in FLOORS:
            wrong.append(f"{module} has no floor")
        for name in imports(module, source):
            first = name.split(".")[0]
            if not inside:
                continue
            if first == "vat":
                same = area(name) == area(module) and name != "vat"
                if not (same or FLOORS.get(area(name), 0) < FLOORS.get(area(module), 0)):
                    wrong.append(f"{module} imports {name}")
            elif first in found:
                wrong.append(f"{module} imports the command {name}")
            elif area(module) in CORE and first not in OUTSIDE:
                wrong.append(f"the core's {module} imports {name}")
            elif first in ("hydra", "omegaconf") and area(module) != "vat.runs":
                wrong.append(f"{module} imports {name}, which only vat.runs may")
    return wrong


def cycle(found):
    """Modules of one circle of imports, with the first again at the end; empty if there is no circle."""
    edges = {module: sorted({name for name in imports(module, source) if name in found}) for module, source in found.items()}
    done = set()

    def follow(path):
        for name in edges[path[-1]]:
            if name in path:
                return [*path[path.index(name) :], name]
            if name not in done and (round_trip := follow([*path, name])):
                return round_trip
        done.add(path[-1])
        return []

    return next(filter(None, (follow([module]) for module in sorted(found))), [])


def test_imports_point_one_way():
    assert violations(sources()) == []
    assert cycle(sources()) == []


def test_a_circle_of_imports_is_seen():
    assert cycle({"runs": "import train", "train": "from report import a", "report": "import runs", "page": ""}) == [
        *("report", "runs", "train", "report"),
    ]
    assert cycle({"vat.runs.page": "from vat.runs.report import a", "vat.runs.report": "from vat.runs import page"})
    assert cycle({"runs": "import train", "train": "import report", "report": ""}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vat.functional", "from vat.step import Step"),
        ("vat.step", "import vat.directions"),
        ("vat.directions", "from vat.regularizers.base import mean"),
        ("vat.directions", "from vat import VAT"),
        ("vat.regularizers.vat", "from vat.lightning.classifier import Classifier"),
        ("vat.regularizers.vat", "def f():\n    import pytorch_lightning"),
        ("vat.models.cnn", "from vat.functional import entropy"),
        ("vat.models.cnn", "from vat.regularizers import VAT"),
        ("vat.data.splits", "from vat.step import Key"),
        ("vat.functional", "import numpy"),
        ("vat", "import pytorch_lightning"),
        ("vat.lightning.classifier", "import hydra"),
        ("vat.lightning.callback", "import train"),
        ("vat.lightning.callback", "from vat.runs import report"),
        ("vat.evaluation.robustness", "from vat.lightning.loggers import finish_wandb"),
        ("vat.attacks", "from vat.evaluation.robustness import evaluate"),
        ("vat.new", "import torch"),
    ],
)
def test_an_import_the_wrong_way_is_seen(module, source):
    assert len(violations({"train": "", module: source})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "vat.regularizers.vat",
            "from vat.regularizers.base import mean\nfrom vat.step import Step\nimport torch, math",
        ),
        ("vat.lightning.callback", "import pytorch_lightning\nfrom vat.lightning.classifier import Classifier\nfrom vat import VAT"),
        ("vat.data.sets.digits", "import torch\nfrom vat.data.splits import Split"),
        ("train", "import hydra\nfrom vat.lightning.classifier import Classifier"),
        ("vat.runs.sweeps", "import hydra\nfrom vat.lightning.classifier import Classifier\nfrom vat.runs import page"),
    ],
)
def test_an_import_the_right_way_is_no_violation(module, source):
    assert violations({"train": "", module: source}) == []


def test_the_core_has_sources():
    assert set(CORE) - {"vat.seeds"} <= sources().keys()


def test_importing_the_core_imports_only_torch():
    code = (
        "import sys, torch; before = {m.split('.')[0] for m in sys.modules}; import vat;"
        "print(*sorted({m.split('.')[0] for m in sys.modules} - before))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SRC)})
    brought = set(result.stdout.split())
    assert "vat" in brought
    # torch may import more of its modules later, but none of the project's other dependencies
    assert not brought & {
        "pytorch_lightning",
        "lightning",
        "hydra",
        "omegaconf",
        "wandb",
        "torchmetrics",
        "torchvision",
        "sklearn",
        "matplotlib",
        "pandas",
    }


def test_a_job_without_wandb_does_not_wait_for_its_import():
    command = [sys.executable, "-c", "import sys, train; print('train' in sys.modules, 'wandb' in sys.modules)"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SRC)})
    assert result.stdout.split() == ["True", "False"]
