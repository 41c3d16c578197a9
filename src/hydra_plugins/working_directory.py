"""The user's own files: `conf/` and Python modules in the folder from which a command is run."""

import os
import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

CONF = Path(__file__).resolve().parents[2] / "conf"


class WorkingDirectory(SearchPathPlugin):
    """Adds `conf/` of the working directory behind the project's own, and the working directory to where modules are looked for.

    `conf/model/mine.yaml` with `_target_: my_package.MyNet` is then chosen by `model=mine`. Files of the project come first: those of
    another Hydra project, from whose folder a command is run, must not take their place.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add them, where the command is one of this project.

        Args:
            search_path: Where Hydra looks for configurations.
        """
        places = [str(element.path).removeprefix("file://") for element in search_path.get_path()]
        if not any(os.path.realpath(place) == str(CONF) for place in places):
            return
        here = Path.cwd()
        if str(here) not in sys.path:
            sys.path.append(str(here))  # last, so that it hides no module
        own = here / "conf"
        if not own.is_dir() or own.resolve() == CONF:
            return
        search_path.append("working directory", f"file://{own}")
        hidden = sorted(str(path.relative_to(own)) for path in own.rglob("*.yaml") if (CONF / path.relative_to(own)).is_file())
        if hidden:
            print(
                f"warning: not read, as the project has files of these names: conf/{', conf/'.join(hidden)}; rename yours", file=sys.stderr
            )
