"""What a command prints if it refuses."""

import pytest


def refused(run, *arguments):
    """The one line with which `run(*arguments)` refuses."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    message = str(error.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message
