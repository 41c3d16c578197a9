"""The scripts as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "scripts"


def load(name: str) -> ModuleType:
    """`scripts/NAME.py`, run afresh; known by its name, for dataclasses look their module up."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # a script may import its neighbour
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
