"""Turns errors into messages for a user."""

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
"""Most characters of a message. A name in a checkpoint may have a million."""

WHOLE, OURS = "HYDRA_FULL_ERROR", "VAT_HYDRA_RAISES"  # OURS is set if this program, not the user, set WHOLE

OUT_OF_MEMORY = (
    "out of memory. Lower data.batch_size_unlabeled and data.batch_size_labeled (trainer.accumulate_grad_batches compensates for it), "
    "or the model's size. ckpt_path=last resumes only with the same settings"
)


def run(main: Callable[[], Any], *, without_choice: Sequence[str] = ()) -> None:
    """Start a command. An error of Hydra ends it with one line.

    Args:
        main: The command.
        without_choice: Groups that have no choice unless one is typed.
    """
    before = dict(os.environ)
    if before.get(WHOLE) != "1":
        os.environ[WHOLE] = os.environ[OURS] = "1"  # Hydra then raises its errors, instead of printing its search path
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
    """A message for a choice or setting that does not exist, with the closest valid name. None for another error."""
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
    """Print one clear line for a user's mistake instead of a traceback. HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        with visible_warnings():
            yield
    except SIGTERMException:
        print("ended by a signal, after saving. To resume, add ckpt_path=last, or repeat the command of a sweep", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None  # otherwise the status would be that of success
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning ends a training at Ctrl-C without a message.
        print("interrupted. To resume from the last validation, add ckpt_path=last, or repeat the command of a sweep", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (*USER_ERRORS, MemoryError, RuntimeError) as error:
        if _wants_the_whole_error() or not (_out_of_memory(error) or isinstance(error, USER_ERRORS)):
            raise
        raise SystemExit(f"error: {readable(error)}") from None


def readable(error: BaseException) -> str:
    """The message of an error for a user."""
    if name := unknown_name(error):
        return name
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    if _out_of_memory(cause):
        return f"{OUT_OF_MEMORY} ({str(cause).splitlines()[0] if str(cause) else 'no more is known'})"
    if isinstance(cause, OmegaConfBaseException):  # the other lines are for authors of a configuration
        said, key = str(cause).splitlines()[0], cause.full_key or ""
        if "is not a ListConfig" in said:
            said = f"{key} must be a list, such as {key}=[...]"
        return visible(said if key in said else f"{key}: {said}")[:LONGEST]
    # Hydra's messages have several lines. In others a line break comes from a name, and could imitate a message of this project.
    said = visible(str(cause), keep="\n" if isinstance(cause, HydraException) else "") or type(cause).__name__
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 300]} … {said[-300:]}"  # the remedy comes last


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the CPU's error has no class
