"""Giving memory back to the system that this process no longer uses."""

from __future__ import annotations

import ctypes
import sys


def give_back_free_memory() -> None:
    """Return freed memory to the system, where the C library is glibc; elsewhere nothing is done.

    glibc keeps the gaps that batches of different lengths leave in its heap. After hundreds of them these are as large
    as all the results.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
