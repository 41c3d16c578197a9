"""The modules of a function, and the weights, buffers and plain attributes of their layers."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

Held = dict[str, Any]
"""A layer's dictionary of parameters, buffers or attributes."""
Places = list[tuple[Held, str]]
OF_EVERY_MODULE = vars(nn.Module()).keys()
COPIED = {Tensor, list, dict, set, OrderedDict, defaultdict, Counter, deque}


def all_layers(roots: Iterable[Any]) -> list[nn.Module]:
    """All layers of networks, each once. `Module.modules()` takes three times as long."""
    found: dict[nn.Module, None] = {}
    waiting = [*roots][::-1]
    while waiting:
        layer = waiting.pop()
        if layer is not None and layer not in found:
            found[layer] = None
            waiting.extend(reversed(layer._modules.values()))
    return list(found)


def weights_of(layers: Iterable[nn.Module]) -> Iterator[Tensor]:
    """The parameters of layers. A tied parameter appears once for each of its places."""
    return (weight for layer in layers for weight in layer._parameters.values() if weight is not None)


def places_of(tensors: Iterable[Held]) -> list[tuple[Tensor, Places]]:
    """Each tensor of the dictionaries, with its places. Tied weights have several."""
    places: dict[int, tuple[Tensor, Places]] = {}
    for held in tensors:
        for name, tensor in held.items():
            if not (tensor is None or is_lazy(tensor)):
                places.setdefault(id(tensor), (tensor, []))[1].append((held, name))
    return list(places.values())


def hold(tensors: Iterable[tuple[Held, str, Tensor | None]]) -> None:
    """Put each tensor into its place."""
    for held, name, tensor in tensors:
        held[name] = tensor


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of `DistributedDataParallel` and `torch.compile`. Wrapped or not, its weights keep their names."""
    while True:
        inner = module.module if isinstance(module, DistributedDataParallel) else module._modules.get("_orig_mod")
        if inner is None:
            return module
        module = inner


def kept_values(layers: Iterable[nn.Module]) -> list[tuple[Any, Places]]:
    """Each tensor or container in plain attributes, with its places."""
    places: dict[int, tuple[Any, Places]] = {}
    for layer in layers:
        held = vars(layer)
        for name, value in held.items():
            if type(value) in COPIED and name not in OF_EVERY_MODULE:
                places.setdefault(id(value), (value, []))[1].append((held, name))
    return list(places.values())


def copy_of(value: Any) -> Any:
    """Copy a tensor or container. A large container is returned without a copy."""
    if type(value) is Tensor:
        return value.clone()
    # A container of thousands of entries is a table, such as a vocabulary, not state.
    return value.copy() if len(value) < 1000 else value


def put_back(held: Held, before: Held) -> None:
    """Give `held` the same objects under the same names as `before`."""
    if len(held) == len(before) and all(map(is_, held.values(), before.values())):
        return
    for name in held.keys() - before.keys():
        del held[name]
    held.update(before)


def size_of(layers: Iterable[nn.Module]) -> int:
    """Number of layers inside `layers`, and of their weights."""
    return sum(len(layer._modules) + len(layer._parameters) for layer in layers)


@lru_cache(maxsize=1024)
def is_torchs(kind: type) -> bool:
    """Whether a class of layers is from torch or `vat.models`, whose layers keep no state in plain attributes.

    All base classes count, because torch derives some classes from those of users.
    """
    return all(base.__module__.startswith(("torch.", "vat.models.", "builtins", "typing")) for base in kind.__mro__)


def has_no_hooks(layer: nn.Module) -> bool:
    """Whether the layer has no forward hook."""
    return not (layer._forward_hooks or layer._forward_pre_hooks)


@lru_cache(maxsize=1024)
def is_quantized(kind: type) -> bool:
    """Whether it is one of torch's layers with weights of integers, through some of which a gradient passes as if they were not there."""
    return kind.__module__.startswith(("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized."))


@lru_cache(maxsize=1024)
def divides(kind: type) -> bool:
    """Whether a class of layers is from FSDP2."""
    return any(base.__name__ == "FSDPModule" for base in kind.__mro__)  # by name, because its import takes a second


def is_divided(module: nn.Module | None) -> bool:
    """Whether FSDP2 divides weights of the module among processes. All processes must then call it together."""
    return module is not None and any(divides(type(layer)) for layer in all_layers([module]))


def modules_of(forward: Callable[..., Any], module: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """Modules that a function uses: those given, or those found in the function itself.

    Raises:
        TypeError: If they are not known, or `module` holds something else.
    """
    if module is not None:
        modules = [module] if isinstance(module, nn.Module) else list(module)
        if not all(isinstance(part, nn.Module) for part in modules):
            raise TypeError(f"module must be an nn.Module, a list of several, or () if there is none, got {module!r}")
        return modules or _shown(forward)
    modules = _shown(forward)
    if not modules:
        name = getattr(forward, "__name__", type(forward).__name__)
        raise TypeError(
            f"the module that the function {name} uses is not known: pass it, as vat(lambda x: model(x), x, module=model). Pass several "
            "as module=[encoder, head], and module=() if there is none"
        )
    return modules


def _shown(forward: Callable[..., Any]) -> list[nn.Module]:
    """The module that a function is or belongs to, also in a `functools.partial`, and the modules among the partial's arguments."""
    given: list[Any] = []
    while isinstance(forward, partial):
        given += (*forward.args, *forward.keywords.values())
        forward = forward.func
    owner = getattr(forward, "__self__", forward)
    return [part for part in (owner, *given) if isinstance(part, nn.Module)] if isinstance(owner, nn.Module) else []
