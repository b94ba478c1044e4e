"""The one setting of the C library that photos and training share."""

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next request instead of giving it back to the system.

    Training and decoding ask for the same large arrays again and again; fresh pages, which the system fills with zeros,
    cost PyTorch a third of its time. The process' peak stays the same. Source: mallopt(3), M_MMAP_MAX and
    M_TRIM_THRESHOLD.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
