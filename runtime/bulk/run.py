"""Opens a run in its output folder: a new one, or one that goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from runtime.backends.open import open_backend
from runtime.backends.tensorrt.engine_info import read_engine_info
from runtime.bulk.attempts import forget_attempts
from runtime.bulk.plan import Images, Plan, find_images, open_plan, write_plan
from runtime.bulk.shards import shard_path
from runtime.bulk.worker import Job
from runtime.detector_options import DetectorOptions
from runtime.errors import InputError
from runtime.files import read_json, sweep_temporaries, write_json
from runtime.results.classes import parse_classes
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)

MANIFEST = "_run.json"
"""Name of the run's settings in the output folder."""

_KIND, _VERSION = "yolov3-asff-bulk", 1


def open_job(folder: Path, source: str, chosen: DetectorOptions, *, shard_size: int, batch: Optional[int]) -> Job:
    """Plans a run, or opens the plan of an earlier one with the same model, settings and source.

    Args:
        folder: of the results, which no other process uses.
        source: see `find_images`.
        chosen: the model, thresholds and classes.
        shard_size: images of a shard.
        batch: see `Job`.

    Raises:
        InputError: the source has no images, or the folder holds a run with other settings, or other files.
    """
    spec = read_spec(chosen)
    if chosen.classes is not None:
        parse_classes(chosen.classes, spec.class_names)  # not first in a worker
    images = find_images(source, leave_out=folder)
    decisive = {**chosen.settings(spec), "backend": chosen.backend, "images per shard": shard_size}
    settings = {**decisive, "source": os.path.abspath(source), "list": _content_hash(source, images)}
    path = folder / MANIFEST
    content = _read(path) if path.is_file() else None
    if content and content["settings"] != settings and not _has_results(folder):
        content = None  # nothing was made with them yet
        forget_attempts(folder)
    if content:
        _check(folder, content["settings"], settings)
        plan = _resume(folder, content, images, source, shard_size)
    else:
        _check_new(folder)
        plan = write_plan(folder, images, shard_size)
        content = {"kind": _KIND, "version": _VERSION, "settings": settings, "plan": plan.sha256, "base": os.getcwd()}
        write_json(path, content)
    sweep(folder, plan)
    metadata = {
        "class_names": json.dumps(spec.class_names),
        "spec_sha256": hashlib.sha256(json.dumps(spec.to_metadata(), sort_keys=True).encode()).hexdigest(),
        "model_sha256": settings["model"],
        "plan_sha256": plan.sha256,
        "settings": json.dumps(decisive),
    }
    # Absolute: a worker may run in another folder.
    bases = tuple(filter(None, (images.folder, content["base"])))
    folder = Path(os.path.abspath(folder))
    return Job(_absolute(chosen), settings["model"], folder, _moved(plan, folder), bases, images.table, metadata, batch)


def _absolute(chosen: DetectorOptions) -> DetectorOptions:
    return DetectorOptions(**{**vars(chosen), "engine": os.path.abspath(chosen.engine)})


def _moved(plan: Plan, folder: Path) -> Plan:
    return Plan(folder / plan.path.name, plan.images, plan.shard_size, plan.sha256)


def read_spec(chosen: DetectorOptions) -> ModelSpec:
    """Reads the spec of the model; that of an engine from its manifest, since this machine may have no GPU for it."""
    path = Path(chosen.engine)
    if path.suffix == ".engine" and path.is_file():
        return read_engine_info(path).spec
    with open_backend(chosen.engine, chosen.backend) as backend:
        return backend.spec


def _content_hash(source: str, images: Images) -> Optional[str]:
    """Hashes what a list or table names; None for a folder or pattern, to which files may come while the run goes on."""
    if not os.path.isfile(source):
        return None
    digest = hashlib.sha256(str(os.stat(source).st_size if images.table else "").encode())
    for name in images.names if images.table else _places(images.names, images.folder or os.getcwd()):
        digest.update(b"\1" if name is None else name + b"\0")
    return digest.hexdigest()


def _places(names: Iterable[Optional[bytes]], base: str) -> Iterator[Optional[bytes]]:
    """Yields where files are, however their names are written."""
    start = os.fsencode(base)
    return (name and os.path.normpath(os.path.join(start, name)) for name in names)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    try:
        if content["kind"] == _KIND and content["version"] == _VERSION:
            return {
                **content,
                "settings": dict(content["settings"]),
                "plan": str(content["plan"]),
                "base": str(content["base"]),
            }
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError(f"{path}: not of this version of python -m runtime.bulk; choose another --output")


def _check(folder: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name in sorted(settings.keys() | earlier.keys()):
        if settings.get(name) != earlier.get(name):
            raise InputError(
                f"{folder}: holds results made with {name} {earlier.get(name)}, now it is {settings.get(name)};"
                " use the same, or choose another --output"
            )


def _resume(folder: Path, content: Mapping[str, Any], images: Images, source: str, shard_size: int) -> Plan:
    plan = open_plan(folder, shard_size)
    if plan.sha256 != content["plan"]:
        raise InputError(f"{plan.path}: changed since the run began; choose another --output")
    if content["settings"]["list"] is None:
        planned = set(_places(plan.all_names(), content["base"]))
        new = sum(place not in planned for place in _places(images.names, os.getcwd()))
        if new:
            log.warning(
                "%d files came to %s after the run began; they are left out of it, run them into another --output", new, source
            )
    return plan


def _has_results(folder: Path) -> bool:
    return any(folder.glob("shard-*.parquet"))


def _check_new(folder: Path) -> None:
    if _has_results(folder):
        raise InputError(f"{folder}: holds shards, but not {MANIFEST} that says what they are of; choose another --output")


def sweep(folder: Path, plan: Plan) -> None:
    """Removes what killed workers left half written; none may be at work."""
    halves = {path.name[: len(f".{shard_path(folder, 0).stem}")] for path in folder.glob(".shard-*.parquet")}
    for shard in range(plan.shards) if halves else ():
        if f".{shard_path(folder, shard).stem}" in halves:
            sweep_temporaries(shard_path(folder, shard))


def finish(job: Job) -> None:
    """Removes what a run needed only until its last shard was written."""
    sweep(job.folder, job.plan)
    forget_attempts(job.folder)
