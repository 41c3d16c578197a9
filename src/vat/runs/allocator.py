"""What the C library does with memory that is freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process. False where the C library is not glibc, which alone takes the hint.

    By default it returns blocks of more than 32 MiB at once, and the kernel clears every page of the next one: on a CPU that is a large
    part of the time of a convolutional network whose activations are larger.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
