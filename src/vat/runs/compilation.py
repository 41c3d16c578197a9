"""`compile=true`: compile the network with torch.compile."""

from omegaconf import DictConfig
from torch import nn


def compile_in_place(network: nn.Module) -> None:
    """Compile the network at its first call. The names of its weights stay the same.

    Raises:
        ValueError: If there is no C++ compiler.
    """
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config  # here, because the import takes a second
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("compile=true needs a C++ compiler, but none is found. Install g++, or leave compile out.") from error
    torch._dynamo.reset()  # a job of a sweep must not depend on the jobs before it
    torch._dynamo.config.recompile_limit = 64  # a step calls it in several ways: with and without gradients, parameters as constants
    # Draw noise as torch does, so that passes that are not compiled have the same masks.
    torch._inductor.config.fallback_random = True
    torch._functorch.config.donated_buffer = False  # otherwise the first backward pass frees memory that a second one needs
    network.compile()


def refuse_second_derivatives(cfg: DictConfig) -> None:
    """Refuse second derivatives, which torch.compile does not support.

    Raises:
        ValueError: If a regularizer needs them.
    """
    if any(node.get("gradient_through_r") for node in cfg.regularizers):
        raise ValueError("compile=true cannot differentiate twice, which vat.gradient_through_r=true needs. Leave one of the two out.")
