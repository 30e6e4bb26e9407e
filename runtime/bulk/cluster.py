"""Starts a local Ray cluster, or connects to one, and has its workers make shards."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime import errors
from runtime.bulk.libraries import EXTRA
from runtime.bulk.shards import Counts
from runtime.bulk.worker import Job, ShardWorker
from runtime.components import load
from runtime.console.startup import ENDING
from runtime.console.terminal import printable
from runtime.errors import DetectorError, InputError, OutputError

_OBJECTS = 100 << 20  # bytes of Ray's object store: only the numbers of shards and their counts pass through it
_LONGEST_FOLDER = 40  # characters: Ray puts sockets into it, whose paths have a limit of 107
_CORES_PER_WORKER = 4
_ANSWER = 10.0  # seconds that a cluster may take to answer


@dataclass(frozen=True)
class Pool:
    """Workers of a run.

    Attributes:
        workers: number of processes, each with the model.
        threads: of each.
        gpus: share of a GPU that each reserves; 0 for none.
    """

    workers: int
    threads: int
    gpus: float


def load_ray(*, local: bool) -> Any:
    """Imports Ray with its environment set, which it reads only then: quiet, nothing reported to its maker.

    Args:
        local: a cluster is to be started here; it is given a random token, which all who talk to it must know.
    """
    if local and "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
    load("ray.data", EXTRA)
    return load("ray", EXTRA)


@contextlib.contextmanager
def connected(address: Optional[str], folder: Path, workers: Optional[int]) -> Iterator[Any]:
    """Yields `ray`, connected to the cluster at an address, or to a local one that ends with the block.

    A local cluster listens on the network, but answers only those who have its token. What Ray prints meanwhile on stdout
    is dropped.

    Args:
        address: `auto` or `host:port` of a cluster; None to start a local one.
        folder: of the results, by which Ray's temporary folder is named.
        workers: that a local cluster must have room for.

    Raises:
        InputError: there is no cluster at the address.
        OutputError: there is no place for Ray's temporary files.
    """
    ray = load_ray(local=address is None)
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL"}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.ExitStack() as stack:
        if address is None:
            temporary = stack.enter_context(_session_folder(folder))
            local = {"num_cpus": max(cores(), workers or 1), "object_store_memory": _OBJECTS, "_temp_dir": str(temporary)}
            quiet.update(local, address="local", include_dashboard=False)
        else:
            check_answers(address)
            quiet.update(address=address)
        stack.callback(ray.shutdown)
        try:
            with _kept_signals(), _dropped_stderr(), _in_own_root():
                ray.init(**quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = "a local Ray cluster does not start" if address is None else f"--address {address}: no Ray cluster there"
            remedy = "" if address is None else "; start one with `ray start --head`"
            raise InputError(f"{where} ({printable(error.__cause__ or error, 400)}){remedy}") from error
        yield ray


def check_answers(address: str) -> None:
    """Raises InputError unless something answers at `host:port`; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        if not host or not port.isdigit():
            raise ValueError("expected auto or host:port")
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster there ({error}); start one with `ray start --head`") from error


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_pool(ray: Any, workers: Optional[int], gpus: float) -> Pool:
    """Divides the cores of the cluster among the workers.

    Args:
        ray: connected.
        workers: as the user wants; None for one on each share of a GPU, or on every 4 cores.
        gpus: share of a GPU that each reserves.

    Raises:
        MissingComponentError: the cluster has no GPU.
    """
    has = ray.cluster_resources()
    if gpus and has.get("GPU", 0) < gpus:
        raise errors.MissingComponentError(
            "the Ray cluster has no GPU for a worker; use --gpus 0 with a model that runs on CPUs"
        )
    total = max(int(has.get("CPU", 1)), 1)
    chosen = workers or max(int(has["GPU"] / gpus) if gpus else total // _CORES_PER_WORKER, 1)
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return Pool(chosen, max(min(total // chosen, min(filter(None, nodes), default=1)), 1), gpus)


def make_shards(ray: Any, job: Job, pool: Pool, shards: Sequence[int]) -> Iterator[Counts]:
    """Has the workers make shards; yields the counts of each as it is written, in any order.

    A worker that is killed is replaced, and its shard made again.

    Raises:
        DetectorError: as a worker raised it.
    """
    data = load("ray.data", EXTRA)
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    results = data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        ShardWorker,
        fn_constructor_args=(job, pool.threads),
        batch_size=1,
        num_cpus=pool.threads,
        num_gpus=pool.gpus or None,
        compute=data.ActorPoolStrategy(size=min(pool.workers, len(shards))),
    )
    for row in results.iter_rows():
        if row["kind"]:
            raise as_error(row["kind"], row["error"])
        yield Counts(int(row["images"]), int(row["failed"]), int(row["detections"]))


def as_error(kind: str, message: str) -> Exception:
    """Returns the error that a worker reported."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, DetectorError):
        return known(message)
    if kind == "MemoryError":
        return MemoryError(message)
    return RuntimeError(f"a worker failed: {kind}: {message}")


@contextlib.contextmanager
def _session_folder(results: Path) -> Iterator[Path]:
    """Creates Ray's temporary folder, and removes it at the end; also that of an earlier run which was killed."""
    name = f"bulk-{hashlib.sha256(os.fsencode(os.path.abspath(results))).hexdigest()[:12]}"
    place = next((base for base in (tempfile.gettempdir(), "/tmp") if len(base) + len(name) < _LONGEST_FOLDER), "/tmp")
    path = Path(place) / name
    try:
        if path.is_symlink() or (path.exists() and not _is_own(path)):
            raise OutputError(f"{path}: is not of this user; set TMPDIR to another folder for Ray's temporary files")
        _remove(path)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot create {path}: {error.strerror or error}; set TMPDIR to a short folder") from error
    try:
        yield path
    finally:
        _remove(path)


def _is_own(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _remove(path: Path) -> None:
    """Removes a folder; its writers may take a moment to end."""
    for _ in range(50):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Puts the handlers of signals back that Ray replaces by its own."""
    earlier = {number: handler for number in ENDING if (handler := signal.getsignal(number)) is not None}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _in_own_root() -> Iterator[None]:
    """Works in the folder of our packages, which workers search before others: the user's may hold a `runtime` too."""
    before = os.getcwd()
    os.chdir(Path(__file__).parents[2])
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _dropped_stderr() -> Iterator[None]:
    """Drops what C++ code writes to stderr."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
