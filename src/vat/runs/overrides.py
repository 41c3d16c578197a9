"""Values on Hydra's command line."""

import shlex
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quoted(value: object) -> str:
    """The value in quotes. Without them Hydra reads commas as a sweep, and refuses brackets and non-ASCII letters."""
    return "'" + str(value).replace("'", "\\'") + "'"


def refuse_unreadable(words: Iterable[str]) -> None:
    """Refuse overrides that Hydra's grammar cannot parse, such as most punctuation in a file name.

    Args:
        words: The overrides that the user typed.

    Raises:
        ValueError: If an override cannot be parsed. The error shows what to type.
    """
    parser = OverridesParser.create()
    for word in words:
        try:
            parser.parse_override(word)
        except HydraException as error:
            key, equals, value = word.partition("=")
            if not equals:
                remedy = f"a setting must be key=value, got {word if key.isprintable() else repr(word)}"
                raise ValueError(remedy) from error
            is_list = value.startswith("[") and value.endswith("]")  # otherwise a name
            entries = [entry.strip() for entry in value[1:-1].split(",")] if is_list else []
            listed = ",".join(entry if entry[:1] in ("'", '"') else quoted(entry) for entry in entries)
            instead = f"{key}=[{listed}]" if is_list else f"{key}={quoted(value)}"
            instead = shlex.quote(instead) if {*value} & {*'!$`"\\'} else f'"{instead}"'
            raise ValueError(f"{word}: characters such as ~ = # & ! ' ; ( ) [ ] need quotes within quotes. Type {instead}") from error


def refuse_settings_without_choice(words: Sequence[str], groups: Iterable[str]) -> None:
    """Refuse a setting of a group that has no choice, as `data.test=new.csv` without `data=arrays`.

    Args:
        words: The overrides as they were typed.
        groups: Groups that have no choice unless one is typed.

    Raises:
        ValueError: If there is such a word.
    """
    for group in groups:
        alone = [word for word in words if word.startswith(f"{group}.")]
        if alone and not any(word.startswith(f"{group}=") for word in words):
            raise ValueError(
                f"{alone[0]}: there is no {group} to set it in. Add {group}=... with all of its settings, as data=arrays "
                "data.train=old.csv data.test=new.csv. Without it, the checkpoint's own test part is used"
            )
