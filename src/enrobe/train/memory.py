"""What training asks of the C library's memory."""

import ctypes
import sys

# glibc's mallopt; see malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**30


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next step to use.

    glibc gives blocks of over 128 kB back to the system at once, and a step frees every tensor that
    the next one asks for again: a fifth of a short step went into pages being handed out and
    cleared. The peak of memory is the same. Nothing is done where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _NEVER)
        mallopt(_TRIM_THRESHOLD, _NEVER)
