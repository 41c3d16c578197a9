"""How values are written on Hydra's command line."""


def quoted(value: object) -> str:
    """The value as one word: without quotes Hydra reads commas as a sweep, and refuses brackets and letters beyond ASCII."""
    return "'" + str(value).replace("'", "\\'") + "'"
