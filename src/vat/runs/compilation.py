"""`compile=true`: the network through torch.compile."""

from omegaconf import DictConfig
from torch import nn


def compile_in_place(network: nn.Module) -> None:
    """Compile the network at its first call, under the names that its weights have.

    Raises:
        ValueError: there is no C++ compiler, which it takes.
    """
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config  # here, for it takes a second
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("compile=true takes a C++ compiler, and none is found: install g++, or leave compile out") from error
    torch._dynamo.reset()  # a job of a sweep owes nothing to those before it
    torch._dynamo.config.recompile_limit = 64  # a step calls it in several ways: with and without gradients, parameters as constants
    # Noise as torch draws it: where a pass is not compiled, its masks are to be those of the others.
    torch._inductor.config.fallback_random = True
    torch._functorch.config.donated_buffer = False  # else the memory of a pass is gone after one backward pass; some have two
    network.compile()


def refuse_second_derivatives(cfg: DictConfig) -> None:
    """Refuse what torch.compile cannot.

    Raises:
        ValueError: names it, and a way out.
    """
    if any(node.get("gradient_through_r") for node in cfg.regularizers):
        raise ValueError(
            "compile=true: vat.gradient_through_r=true differentiates twice, which torch.compile cannot; leave one of the two out"
        )
