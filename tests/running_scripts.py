"""Load the scripts as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "scripts"


def load(name: str) -> ModuleType:
    """Run `scripts/NAME.py` again and return it as a module. It is in `sys.modules`, because dataclasses look up their module there."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # a script may import another one
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
