"""The machine's memory: a bound against hostile files, telling that it ran out, and keeping it from step to step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ModuleNotFoundError:  # not on Windows
    resource = None  # type: ignore[assignment]

_STATUS = Path("/proc/self/status")
_TRIM_THRESHOLD, _MOST_MAPPINGS = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Lets allocations fail while the block runs, once the whole process took `size` bytes more than before it.

    Does nothing on systems other than Linux.
    """
    taken = _data_size()
    if resource is None or taken is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [taken + size, *(value for value in (soft, hard) if value != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error that says that memory ran out, of the processor or the GPU."""
    texts = ("not enough memory", "can't allocate memory", "out of memory")  # as PyTorch says it
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


def _data_size() -> int | None:
    """Returns the bytes that count against the limit; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next allocation; other C libraries are left as they are.

    By default it returns large blocks to the system at once. Each step of a training on a CPU then has all its large tensors
    mapped and zeroed again, page by page.
    """
    with contextlib.suppress(TypeError, AttributeError):  # not on Windows; another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MOST_MAPPINGS, 0)
