"""Origin of a result: the state of the code, the versions of its dependencies, the machine."""

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "wandb")


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Git commit (`+ changes` if files differ from it), versions, platform, devices and the command, by name."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git": _git_state(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": ", ".join(devices) or f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "command": " ".join(sys.argv),
    }


def _git_state() -> str:
    # GIT_CONFIG_… in the environment can make git run commands, and GIT_DIR can select another repository.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        found = subprocess.run(
            ["git", *words], env=plain, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
        return found.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" + changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
