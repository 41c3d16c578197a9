"""Former modules of classes that moved, so that older checkpoints, which contain the names of classes, still load."""

from typing import Any

MOVED = {
    **{f"vat.data.{name}": f"vat.data.sets.{name}" for name in ("digits", "synthetic", "mnist", "cifar", "svhn", "norb")},
    **{f"vat.data.{name}": f"vat.data.own.{name}" for name in ("images", "arrays")},
    "vat.loggers": "vat.lightning.loggers",
}
"""Former and current module, since version 0.1."""


def renamed(node: Any) -> Any:
    """Replace former modules in each `_target_` of a configuration of plain dictionaries and lists.

    In `VAT`, `num_power_iterations=1` becomes None: version 0.1 wrote 1 for every direction if nothing was chosen.
    """
    if isinstance(node, dict):
        found = {key: _moved(value) if key == "_target_" and isinstance(value, str) else renamed(value) for key, value in node.items()}
        unset = found.get("_target_") in ("vat.VAT", "vat.regularizers.vat.VAT") and found.get("num_power_iterations") == 1
        return found | {"num_power_iterations": None} if unset else found
    return [renamed(value) for value in node] if isinstance(node, list) else node


def _moved(target: str) -> str:
    module, _, name = target.rpartition(".")
    return f"{MOVED.get(module, module)}.{name}" if module else target
