"""Settings of the C library for freed memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Keep freed memory in the process. Returns False if the C library is not glibc, because only glibc has this setting.

    By default glibc returns freed blocks of more than 32 MiB at once, and the kernel clears every page of the next block. On a CPU this
    takes a large part of the time of a convolutional network with larger activations.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
