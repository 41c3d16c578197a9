"""Errors that a user can read."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from vat.runs import overrides
from vat.runs.text import visible, visible_warnings

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, HydraException, OmegaConfBaseException, MisconfigurationException)

LONGEST = 2000
"""Characters of a message; a name in a checkpoint may have a million."""

WHOLE, OURS = "HYDRA_FULL_ERROR", "VAT_HYDRA_RAISES"  # the second: this program set the first, not the user

OUT_OF_MEMORY = (
    "out of memory: lower data.batch_size_unlabeled and data.batch_size_labeled (trainer.accumulate_grad_batches makes up for it), "
    "or the model's size; ckpt_path=last goes on where the settings stay the same"
)


def run(main: Callable[[], Any], *, without_choice: Sequence[str] = ()) -> None:
    """Start a command. What Hydra refuses ends in one line.

    Args:
        main: The command.
        without_choice: Groups that have no choice unless one is typed.
    """
    before = dict(os.environ)
    if before.get(WHOLE) != "1":
        os.environ[WHOLE] = os.environ[OURS] = "1"  # Hydra then raises what it refuses; otherwise it prints its search path
    try:
        with readable_errors():
            typed = get_args_parser().parse_known_args()[0].overrides
            overrides.refuse_unreadable(typed)
            overrides.refuse_settings_without_choice(typed, without_choice)
            main()
    finally:
        for name in (WHOLE, OURS):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})


def _wants_the_whole_error() -> bool:
    return os.environ.get(WHOLE) == "1" and OURS not in os.environ


def unknown_name(error: BaseException | None) -> str | None:
    """Which choice or setting Hydra does not know, and the valid name that is closest; None for another error."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        closest = get_close_matches(name, error.options, 1)
        return f"{group}={name} is no choice" + (f": did you mean {group}={closest[0]}?" if closest else f" of {', '.join(error.options)}")
    cause = getattr(error, "__cause__", None)
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError) or not isinstance(cause.parent_node, DictConfig):
        return None
    path = str(cause.full_key)
    above = path.rpartition(".")[0]
    names = [f"{above}.{key}".lstrip(".") for key in cause.parent_node]
    closest = get_close_matches(path, names, 1)
    return f"there is no setting {path}" + (f": did you mean {closest[0]}?" if closest else "")


@contextmanager
def readable_errors() -> Iterator[None]:
    """One clear line for a user's mistake in place of a traceback, which HYDRA_FULL_ERROR=1 shows."""
    try:
        with visible_warnings():
            yield
    except SIGTERMException:
        print("ended by a signal after saving: ckpt_path=last, or the same sweep, goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None  # its own status would be that of success
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning's answer to Ctrl-C in a training, which says nothing.
        print("interrupted: ckpt_path=last, or the same sweep, goes on from the last validation", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (*USER_ERRORS, MemoryError, RuntimeError) as error:
        if _wants_the_whole_error() or not (_out_of_memory(error) or isinstance(error, USER_ERRORS)):
            raise
        raise SystemExit(f"error: {readable(error)}") from None


def readable(error: BaseException) -> str:
    """What an error says to a user."""
    if name := unknown_name(error):
        return name
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    if _out_of_memory(cause):
        return f"{OUT_OF_MEMORY} ({str(cause).splitlines()[0] if str(cause) else 'no more is known'})"
    if isinstance(cause, OmegaConfBaseException):  # the rest is for those who wrote the configuration
        said, key = str(cause).splitlines()[0], cause.full_key or ""
        return visible(said if key in said else f"{key}: {said}")[:LONGEST]
    # Hydra's have several lines; in others a line break comes from a name, which could pass for a message of this project.
    said = visible(str(cause), keep="\n" if isinstance(cause, HydraException) else "") or type(cause).__name__
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 300]} … {said[-300:]}"  # the remedy comes last


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the CPU's is no class
