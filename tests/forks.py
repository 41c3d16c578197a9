"""Run jobs in forks of the test's process, which may be killed, and list all values of a checkpoint."""

import os
import signal
import traceback
from functools import partial


def forked(job):
    """Run a job in a fork and return its process number, for `ended`."""
    child = os.fork()
    if child:
        return child
    status = 1
    signal.alarm(600)
    try:
        job()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        print(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child):
    """Exit status of a fork, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def two_ranks(run):
    """Run `run(rank)` in two forks, both of which must succeed."""
    children = [forked(partial(run, rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(value, path=()):
    """Every value in nested dictionaries and sequences, by its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value
