"""The user's own files: `conf/` and Python modules in the working directory."""

import os
import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

CONF = Path(__file__).resolve().parents[2] / "conf"


class WorkingDirectory(SearchPathPlugin):
    """Add `conf/` of the working directory to Hydra's search path, and the working directory to Python's.

    `model=mine` then chooses `conf/model/mine.yaml` with `_target_: my_package.MyNet`. The project's files come first, because the working
    directory can belong to another Hydra project, whose files must not replace them.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Extend both search paths, if the command belongs to this project.

        Args:
            search_path: Hydra's search path for configurations.
        """
        places = [str(element.path).removeprefix("file://") for element in search_path.get_path()]
        if not any(os.path.realpath(place) == str(CONF) for place in places):
            return
        here = Path.cwd()
        if str(here) not in sys.path:
            sys.path.append(str(here))  # at the end, so that it hides no installed module
        own = here / "conf"
        if not own.is_dir() or own.resolve() == CONF:
            return
        search_path.append("working directory", f"file://{own}")
        hidden = sorted(str(path.relative_to(own)) for path in own.rglob("*.yaml") if (CONF / path.relative_to(own)).is_file())
        if hidden:
            print(
                f"warning: ignored your conf/{', conf/'.join(hidden)}, because the project has files of the same names: rename yours",
                file=sys.stderr,
            )
