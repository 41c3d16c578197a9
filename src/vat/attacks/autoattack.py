"""AutoAttack, by an independent package."""

import importlib.util
import logging

import torch
from torch import Tensor

from vat.attacks.base import Attack, each, predictions
from vat.attacks.threat import Threat
from vat.functional import as_classes
from vat.network import Forward
from vat.norms import LInf
from vat.random_state import random_state


class AutoAttack(Attack):
    """The standard ensemble of `pyautoattack`, an independent implementation: APGD-CE, targeted APGD-DLR and FAB, Square.

    The package needs inputs in [0, 1]. It therefore gets the network behind a map from [0, 1] to the range of the inputs. If the inputs
    have no bounds, the map is wide enough that clipping to [0, 1] has no effect. With few classes, the targeted attacks aim at all of
    them. Attacks that cannot run are left out:

    - with three classes the targeted APGD, because its loss needs four classes
    - with two classes the targeted APGD, and FAB runs without targets
    - in L2 Square on feature vectors and on images of fewer than 5 rows

    Raises:
        ValueError: If `pyautoattack` is not installed.
    """

    white_box = None  # Square uses no gradient

    def __init__(self) -> None:
        if importlib.util.find_spec("pyautoattack") is None:
            raise ValueError("attack=autoattack needs the package pyautoattack, which is not installed: pip install pyautoattack==0.2.0")

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        import pyautoattack  # pyright: ignore[reportMissingImports]  # an optional extra

        if threat.eps == 0 or not len(x):
            return x.clone()
        logging.getLogger("auto-attack").setLevel(logging.ERROR)
        low, high = threat.bounds or (float(x.min()) - threat.eps, float(x.max()) + threat.eps)
        scale = high - low
        images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)

        def on_unit_range(u: Tensor) -> Tensor:
            return as_classes(network(low + scale * u.reshape(len(u), *x.shape[1:])))

        with torch.no_grad():
            others = on_unit_range((images[:1] - low) / scale).shape[1] - 1
        seed = int(torch.randint(2**31, (), generator=generator, device=x.device))
        norm = "Linf" if isinstance(threat.norm, LInf) else "L2"
        attack = pyautoattack.AutoAttack(
            on_unit_range,  # pyright: ignore[reportArgumentType]  # any callable works: the package only calls it
            norm=norm,
            eps=threat.eps / scale,
            seed=seed,
            device=x.device,
        )
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, others)
        few = {1: ["apgd-ce", "fab", "square"], 2: ["apgd-ce", "fab-t", "square"]}
        parts = few.get(others, ["apgd-ce", "apgd-t", "fab-t", "square"])
        if norm == "L2" and images.shape[2] < 5:  # the height of Square's windows is a fifth of the image's
            parts.remove("square")
        attack.attacks_to_run = parts
        with random_state(seed, x.device):
            point, _ = attack.run_standard_evaluation(((images - low) / scale).clamp(0, 1), y, batch_size=len(x))
        point = threat.nearest(x, low + scale * point.reshape(x.shape).to(x.dtype))
        return torch.where(each(predictions(network, point) != y, x), point, x)
