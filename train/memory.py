"""Bounds the memory that a step may take, so that a hostile file cannot exhaust the machine; tells what ran out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ModuleNotFoundError:  # not on Windows
    resource = None  # type: ignore[assignment]

_STATUS = Path("/proc/self/status")


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
