"""What one training step offers a regularizer: the network as a function, the inputs, and randomness with a name.

Passes leave the network as they found it by construction: they run on *copies* of its buffers, which its layers hold for as long as
a pass takes, so there is no hook to undo. Noise drawn inside the network (dropout) is the same in all passes of a step, because each
of them starts from the same key.
"""

import dis
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from vat.seeds import stable_seed

Forward = Callable[[Tensor], Tensor]
Held = dict[str, Any]
"""Tensors that a layer holds, its parameters or its buffers, by their names in it."""
Places = list[tuple[Held, str]]
NO_HOLDERS = (nn.Module, type, ModuleType, *weakref.ProxyTypes)
NOT_ON_COPIES = (nn.DataParallel, torch.jit.ScriptModule)
OF_EVERY_MODULE = vars(nn.Module()).keys()
STATE = (Tensor, bool, int, float, complex, str, tuple, list, dict, set, type(None))
"""Types of what a layer may keep in a plain attribute as its state; objects of others are taken for parts of it, and left alone."""


@dataclass(frozen=True)
class Key:
    """Names the random streams of one micro-step: the same key draws the same numbers, in any process and after any restart.

    Args:
        seed: of the run.
        micro_step: number of batches seen before this one.
        rank: of the process.
    """

    seed: int
    micro_step: int = 0
    rank: int = 0

    @classmethod
    def fresh(cls) -> "Key":
        """A key from torch's default CPU generator, for loops that keep no count of their own."""
        return cls(int(torch.randint(2**62, ()).item()))

    def shared(self, purpose: str) -> int:
        """Seed of a stream that all ranks share."""
        return stable_seed(self.seed, self.micro_step, purpose)

    def own(self, purpose: str) -> int:
        """Seed of a stream that belongs to this rank."""
        return stable_seed(self.seed, self.micro_step, purpose, self.rank)


@contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Within it, torch's default generators (the CPU's and `device`'s) start from `seed`; after it they are as before."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    module = torch.get_device_module(device)
    current = module.device(device) if hasattr(module, "device") else nullcontext()  # MPS has one device only
    with torch.random.fork_rng(devices=[device], device_type=device.type), current:
        torch.default_generator.manual_seed(seed)
        module.manual_seed(seed)
        yield


class Network:
    """A differentiable function of the input, whose calls leave the module behind it as it was.

    Every call starts from the buffers (running statistics, a spectral norm's vectors) as they were when this object was made. What a
    layer under `torch.utils.checkpoint` computes again in the backward pass is out of its reach: batch norm in there moves then. So is
    a tensor in a plain attribute that a layer changes in place: make it a buffer.

    Args:
        forward: x -> logits; a module, or any function.
        module: the module behind a bare function, of which the state is to be protected and weights can be constants. The function itself
            if it is a module, and the module of which it is a method or a `functools.partial`. Of modules that are not named, but that a
            function is seen to use, the state is protected, more than is used perhaps: to name the one is cheaper.
    """

    def __init__(self, forward: Forward, module: nn.Module | None = None):
        module = _behind(forward) if module is None else module
        self._wrapper = forward if isinstance(forward, DistributedDataParallel) else None
        if self._wrapper is not None:
            forward = module = self._wrapper.module
        if isinstance(module, NOT_ON_COPIES):
            raise TypeError(f"a {type(module).__name__} cannot run on copies of its state: hand in the module that it was made of")
        self.module = module
        self._forward = forward
        self._roots = [part for part in (module, forward) if isinstance(part, nn.Module)] or _used_by(forward)
        self._layers = list(dict.fromkeys(layer for root in self._roots for layer in root.modules()))
        # FSDP2 puts weights of its own into its layers, and keeps for good what it finds there in its first pass.
        self._own = [] if module is None or is_divided(module) else self._layers
        self._keepers = [layer for layer in self._layers if not _forgets(layer)]
        self._parts = _parts(self._roots) if self._keepers else []
        self._buffers = [(buffer.clone(), places) for buffer, places in _places(layer._buffers for layer in self._layers)]

    def __call__(
        self,
        x: Tensor,
        *,
        seed: int,
        parameters: Mapping[str, Tensor] | None = None,
        constant: bool = False,
        track: bool = False,
    ) -> Tensor:
        """Logits of `x`.

        Args:
            x: inputs (N, …).
            seed: of the noise drawn inside the network.
            parameters: used in place of the module's own, by name in the `unwrapped` module.
            constant: take the parameters as constants, so that no backward pass can reach them (FSDP2 sees to its own).
            track: let this pass move the module's own buffers, as an ordinary call does.
        """
        if self.module is None and parameters is not None:
            raise ValueError("other weights need a module to be put into: name the one behind the function, module=model")
        x = x.clone()  # a first layer may normalise in place
        with self._on_copies(parameters, constant, track), random_state(seed, x.device), _one_path():
            trains = torch.is_grad_enabled() and not constant and parameters is None
            logits = _synchronised(self._wrapper, x, track) if self._wrapper is not None and trains else self._forward(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the network returned a {type(logits).__name__} in place of logits: hand in a function that picks them, "
                "as vat(lambda x: model(x)[0], x, module=model) or RegularizerCallback(forward=lambda module, x: module(x)[0])"
            )
        if not logits.dim() or len(logits) != len(x):
            raise ValueError(
                f"the network returned an output of shape {tuple(logits.shape)} for inputs of shape {tuple(x.shape)}: the first dimension "
                "of both counts the examples; hand in a function that puts it there"
            )
        if x.requires_grad and not logits.requires_grad:
            raise RuntimeError(
                "no gradient leads from the network's output to its input: is there a torch.no_grad, an inference mode, a detach, an "
                "argmax or a quantized layer in between?"
            )
        return logits

    @contextmanager
    def _on_copies(self, parameters: Mapping[str, Tensor] | None, constant: bool, track: bool) -> Iterator[None]:
        """Within it layers hold other tensors in place of their own, as `__call__` says.

        `torch.func.functional_call` would look each up by its name, in every pass: 0.05 ms more for an MLP, whose pass takes 3.
        """
        others = [] if track else [(buffer.clone(), places) for buffer, places in self._buffers]
        if parameters is not None:
            others += self._by_name(parameters)
        elif constant:
            others += [(weight.detach(), places) for weight, places in _places(layer._parameters for layer in self._own)]
        others = [(held, name, tensor) for tensor, places in others for held, name in places if name in held]
        own = [(held, name, held[name]) for held, name, _ in others]
        with nullcontext() if track else self._kept():
            try:
                _hold(others)
                yield
            finally:
                _hold(own)

    def _by_name(self, parameters: Mapping[str, Tensor]) -> list[tuple[Tensor, Places]]:
        """Tensors for the module's own of these names, each with the places of that one."""
        assert self.module is not None
        inner = unwrapped(self.module)
        names = {id(own): name for name, own in (*inner.named_parameters(), *inner.named_buffers())}
        if unknown := parameters.keys() - names.values():
            raise ValueError(
                f"{type(self.module).__name__} has no weights by the names {', '.join(sorted(unknown))}: they are another module's"
            )
        places = _places(held for layer in self._layers for held in (layer._parameters, layer._buffers))
        return [(parameters[names[id(own)]], where) for own, where in places if names.get(id(own)) in parameters]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """After it layers have their buffers, and in plain attributes their state (a hidden one, losses, a length seen), from before."""
        before = [_Kept(layer) for layer in self._keepers]
        try:
            yield
        finally:
            # With other parts than before the pass has built a layer, and what says so must stay.
            if before and _parts(self._roots) == self._parts:
                for kept in before:
                    kept.put_back()


def _places(tensors: Iterable[Held]) -> list[tuple[Tensor, Places]]:
    """Each tensor that layers hold, with its places: tied weights have several."""
    places: dict[int, tuple[Tensor, Places]] = {}
    for held in tensors:
        for name, tensor in held.items():
            if not (tensor is None or is_lazy(tensor)):
                places.setdefault(id(tensor), (tensor, []))[1].append((held, name))
    return list(places.values())


def _hold(tensors: Iterable[tuple[Held, str, Tensor | None]]) -> None:
    for held, name, tensor in tensors:
        held[name] = tensor


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what `DistributedDataParallel` and `torch.compile` put around it: its weights have the same names in both."""
    while True:
        inner = module.module if isinstance(module, DistributedDataParallel) else module._modules.get("_orig_mod")
        if inner is None:
            return module
        module = inner


def _synchronised(wrapper: DistributedDataParallel, x: Tensor, track: bool) -> Any:
    """The wrapper's output: a pass that trains goes through it, for its processes average only what it was told to expect.

    Buffers of the first process are not sent to the others unless `track`: the pass has copies, and is to leave the buffers alone.
    """
    before = wrapper.broadcast_buffers
    wrapper.broadcast_buffers = before and track
    try:
        return wrapper(x)
    finally:
        wrapper.broadcast_buffers = before


def _behind(forward: Forward) -> nn.Module | None:
    """The module that a function is: itself, one of its methods, a `functools.partial` of either."""
    while isinstance(forward, partial):
        forward = forward.func
    owner = getattr(forward, "__self__", forward)
    return owner if isinstance(owner, nn.Module) else None


def _used_by(function: Forward) -> list[nn.Module]:
    """The modules that a function is seen to use: among its defaults, what it closes over and its globals, or in an attribute of these."""
    seen: list[Any] = []
    while isinstance(function, partial):
        seen += (*function.args, *function.keywords.values())
        function = function.func
    seen.append(getattr(function, "__self__", function))
    if inspect.isfunction(function):
        seen += (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        seen += (function.__globals__[name] for name in _globals(function.__code__) if name in function.__globals__)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty one
                seen.append(cell.cell_contents)
    things = (thing for thing in seen if not issubclass(type(thing), NO_HOLDERS))
    inside = (held for thing in things for held in getattr(thing, "__dict__", {}).values())
    # One that cannot run on copies is called as it is; a weak reference only looks like a module.
    modules = (part for part in (*seen, *inside) if issubclass(type(part), nn.Module) and not isinstance(part, NOT_ON_COPIES))
    return list(dict.fromkeys(modules))


@lru_cache(maxsize=256)
def _globals(code: CodeType) -> frozenset[str]:
    """The names of the globals that a function reads."""
    return frozenset(done.argval for done in dis.get_instructions(code) if done.opname == "LOAD_GLOBAL")


def _forgets(part: nn.Module) -> bool:
    """Whether a pass surely leaves nothing in its plain attributes: torch's own layers do not, unless a hook does it for them."""
    if isinstance(part, torch.jit.ScriptModule):  # keeps nothing that Python sees
        return True
    return type(part).__module__.startswith("torch.nn.modules.") and not (part._forward_pre_hooks or part._forward_hooks)


def _parts(roots: Iterable[nn.Module]) -> list[tuple[nn.Module, list[str]]]:
    """The layers of networks, each with the names of its parameters that are there."""
    layers = (layer for root in roots for layer in root.modules())
    return [(layer, [name for name, p in layer._parameters.items() if not (p is None or is_lazy(p))]) for layer in layers]


class _Kept:
    """What a layer keeps at a time, apart from the values of its buffers."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.buffers = layer._buffers.copy()
        self.attributes = {name: vars(layer)[name] for name in vars(layer).keys() - OF_EVERY_MODULE}
        # Thousands of entries are a table, a vocabulary perhaps, and no state.
        held = [held for held in self.attributes.values() if type(held) in (list, dict, set) and len(held) < 1000]
        self.contents = [(some, some.copy()) for some in held]

    def put_back(self) -> None:
        buffers, now = self.layer._buffers, vars(self.layer)
        for name in buffers.keys() - self.buffers.keys():
            del buffers[name]
        buffers |= {name: None for name, buffer in self.buffers.items() if buffer is None}
        for name in now.keys() - OF_EVERY_MODULE - self.attributes.keys():
            if isinstance(now[name], STATE):
                del now[name]
        now |= {name: old for name, old in self.attributes.items() if isinstance(old, STATE) and isinstance(now.get(name), STATE)}
        for held, contents in self.contents:
            held.clear()
            held.extend(contents) if isinstance(held, list) else held.update(contents)


@contextmanager
def _one_path() -> Iterator[None]:
    """Within it every pass computes by the same rules, with and without a graph, on the weights that it is given.

    A transformer's fused path, taken without a graph, sets what a mask hides to zero; and `torch.nn.utils.parametrize.cached` would
    hand on what a parametrization made of other weights, or without their gradients.
    """
    fused, cached = torch.backends.mha.get_fastpath_enabled(), parametrize._cache_enabled
    torch.backends.mha.set_fastpath_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        parametrize._cache_enabled = cached


def is_divided(module: nn.Module | None) -> bool:
    """Whether FSDP2 has divided its weights, or those of a part, among the processes, which must then call it together."""
    kinds = set() if module is None else set(map(type, module.modules()))
    return any(base.__name__ == "FSDPModule" for kind in kinds for base in kind.__mro__)  # by name, for its import takes a second


@dataclass(frozen=True)
class CleanPass:
    """The unperturbed pass: `x` (N, …), of which gradients can be asked, and `logits` with their graph."""

    x: Tensor
    logits: Tensor


class Step:
    """One training step, as a regularizer sees it. The clean pass is valid for exactly these rows, in this batch.

    Args:
        forward: x -> logits; a module, or any function (with `module` named where its state is to be protected).
        x: inputs (N, …), of a floating dtype.
        y: labels (N,), or None.
        module: the module behind a bare function.
        key: of the step's randomness; a fresh one from torch's default generator if None.
        index: (N,) identity of the rows in the data set, for a regularizer that remembers.
        start: first of these rows in the global batch.
        total: rows of the global batch; random directions are drawn for all of them, so they do not depend on the number of
            processes. N if None.
        view: a second augmented view of the same rows (N, …), or None.
        live: the clean pass carries gradients to the parameters and its graph is kept, because more than one term uses it.
        track: the clean pass moves the running statistics of the network.
        report: where regularizers leave diagnostics; None if nobody wants them.

    Attributes:
        x: the inputs as constants.
        inputs: the same with the graph that led to them (an embedding, a part of the network before), for passes that train.
    """

    def __init__(
        self,
        forward: Forward,
        x: Tensor,
        y: Tensor | None = None,
        *,
        module: nn.Module | None = None,
        key: Key | None = None,
        index: Tensor | None = None,
        start: int = 0,
        total: int | None = None,
        view: Tensor | None = None,
        live: bool = False,
        track: bool = False,
        report: dict[str, Tensor] | None = None,
    ):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x must be a tensor, got a {type(x).__name__}: call it as vat(model, x), with a function of x alone for a model"
            )
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # an ordinary tensor, of which gradients can be asked
        if not x.is_floating_point():
            raise TypeError(f"x must have a floating dtype to be perturbed, got {x.dtype}: pass images / 255, or embeddings")
        if x.is_nested or x.layout is not torch.strided or not x.dim():
            raise TypeError("x must be dense and of shape (N, …): make it so by x.to_dense(), padding or x[None]")
        self._network = Network(forward, module)
        self.x = x.detach()
        self.inputs = x
        self.y = y
        self.key = Key.fresh() if key is None else key
        self.index = index
        self.start = start
        self.total = len(x) if total is None else total
        self.view = view
        self.live = live
        self.track = track
        self.report = report

    @property
    def module(self) -> nn.Module | None:
        """The module whose parameters are trained, where there is one."""
        return self._network.module

    def network(
        self,
        x: Tensor,
        *,
        noise: str = "network",
        parameters: Mapping[str, Tensor] | None = None,
        constant: bool = False,
        track: bool = False,
    ) -> Tensor:
        """Logits of `x` (N, …): the network as it was at the start of the step.

        Args:
            x: inputs.
            noise: name of the stream for dropout and its like; passes of one name share their masks.
            parameters: used in place of the network's own, by name.
            constant: no gradient flows to the parameters.
            track: let this pass move the network's own buffers, as an ordinary call does.
        """
        return self._network(x, seed=self.key.own(noise), parameters=parameters, constant=constant, track=track)

    @cached_property
    def clean(self) -> CleanPass:
        """The clean pass with its graph: to the input, and to the parameters where the step is `live`."""
        with torch.enable_grad():
            x = self.inputs.view_as(self.x) if self.live and self.inputs.requires_grad else self.x.detach().requires_grad_()
            logits = self._network(x, seed=self.key.own("network"), constant=not self.live, track=self.track)
        return CleanPass(x, logits)

    @cached_property
    def target(self) -> Tensor:
        """The clean logits as a constant. A pass of its own, without a graph, where none of the clean pass is needed."""
        if self.live or "clean" in self.__dict__:
            return self.clean.logits.detach()
        with torch.no_grad():
            return self._network(self.x, seed=self.key.own("network"), constant=True)

    def uniform(self, purpose: str) -> Tensor:
        """A number from [0, 1) for each row, float32 (N,), which follows from the row's place in the global batch.

        Args:
            purpose: name of the stream.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        numbers = torch.rand(self.total, generator=generator, device=self.x.device)
        return numbers[self.start : self.start + len(self.x)]

    def normal(self, purpose: str, *, one_row: bool = False) -> Tensor:
        """Standard normal numbers shaped like x, in float32 or wider; each row's follow from its place in the global batch.

        Args:
            purpose: name of the stream.
            one_row: draw a single row (1, …), for all examples alike.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        dtype = torch.promote_types(self.x.dtype, torch.float32)
        shape = (1 if one_row else self.total, *self.x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.x.device, dtype=dtype)
        return noise if one_row else noise[self.start : self.start + len(self.x)]
