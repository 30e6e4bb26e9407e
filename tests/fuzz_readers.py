"""Search for input that the readers of manifests, metadata and caches do not answer in one line, guided by their coverage.

    python tests/fuzz_readers.py -max_total_time=600 FOLDER

FOLDER collects the inputs that reached new code; seeds are written there first. The run ends at the first input that a reader
answers with anything but a short refusal, or takes in but does not give back; it is left in ./crash-*. Flags are libFuzzer's.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    print("error: atheris is not installed; run `pip install atheris`", file=sys.stderr)
    sys.exit(3)

with atheris.instrument_imports(
    include=[
        *("json", "zipfile", "calibration.cache", "runtime.files", "runtime.spec", "runtime.manifest"),
        "runtime.backends.tensorrt.engine_info",
    ]
):
    import json
    import zipfile  # noqa: F401 - instrumented

    from calibration.cache import read_states, read_values, write_states, write_values
    from runtime.backends.tensorrt.engine_info import read_engine_info
    from runtime.files import read_arrays, read_text
    from runtime.manifest import Origin, manifest_path, read_manifest, write_manifest
    from runtime.spec import ModelSpec

import numpy as np

from runtime.errors import InputError
from tests.support.engine_manifests import FACTS

SPEC = ModelSpec("m", ("cat", "dog"), (64, 96), (((1.0, 2.0),),) * 3, made_with=("torch 2.6",))
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 31, 32, 64, 10**9, 2**60, 2**63, 2**2000, -(10**400)),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), "", "0", "1", "retinanet", "../../etc/passwd", "\0", "\ud800"),
    *([], {}, [[]], [1, 2], [[[1, 2]]] * 3, [64, 64], [32, 16, 8], ["a"] * 1000, "\n", "x" * 5000, "9" * 5000),
    *(json.loads("[" * 300 + "]" * 300), json.loads('{"a":' * 900 + "1" + "}" * 900)),
)
_LONGEST_LINE = 500
_FOLDER = tempfile.TemporaryDirectory()
_ENGINE, _CACHE = Path(_FOLDER.name) / "m.engine", Path(_FOLDER.name) / "cache"


def seeds() -> list[bytes]:
    """A manifest of an engine, metadata as lines `key=text`, and caches of numbers and of arrays."""
    _ENGINE.write_bytes(b"plan")
    write_manifest(_ENGINE, SPEC, [Origin("onnx", "m.onnx", "0" * 64)], {"engine": FACTS})
    found = [manifest_path(_ENGINE).read_bytes(), "\n".join(map("=".join, SPEC.to_metadata().items())).encode()]
    write_values(_CACHE, "key", {"a": 1.5})
    found.append(b"\n" + _CACHE.read_bytes())
    write_states(_CACHE, "key", 3, np.arange(6.0).reshape(2, 3))
    return [*found, _CACHE.read_bytes()]


def read(data: bytes) -> None:
    """Whatever the bytes are: taken in and given back the same, or refused in one short line."""
    try:
        if data.startswith((b"PK", b"\n")):
            _read_caches(data)
            return
        if data.startswith(b"{"):
            manifest_path(_ENGINE).write_bytes(data)
            manifest = read_manifest(manifest_path(_ENGINE))
            assert json.dumps(json.loads(json.dumps(manifest.details))) == json.dumps(manifest.details)
            found = manifest.spec
            read_engine_info(_ENGINE)
        else:
            lines = data.decode("utf-8", "surrogatepass").split("\n")
            found = ModelSpec.from_metadata(dict(line.partition("=")[::2] for line in lines))
        assert ModelSpec.from_metadata(found.to_metadata()) == found
    except UnicodeDecodeError:  # of the lines above; readers never raise it
        assert not data.startswith(b"{")
    except InputError as error:
        check_line(str(error))


def _read_caches(data: bytes) -> None:
    """A cache is never an error, only of no use; the readers below it refuse in one line."""
    _CACHE.write_bytes(data)
    read_values(_CACHE, "key")
    read_states(_CACHE, "key")
    for reader in (read_arrays, read_text):
        try:
            reader(_CACHE, 1 << 20)
        except InputError as error:
            check_line(str(error))


def check_line(line: str) -> None:
    assert "\n" not in line and len(line) < _LONGEST_LINE, line


def mutate(data: bytes, limit: int, seed: int) -> bytes:
    """Half of the time any change of bytes, else another value or none at one place of the JSON, so that it stays JSON."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        return atheris.Mutate(data, limit)
    try:
        if data.startswith(b"{"):
            return json.dumps(alter(json.loads(data), rng)).encode("utf-8", "surrogatepass")[:limit]
        lines = [line.partition(b"=")[::2] for line in data.split(b"\n")]
        place = rng.randrange(len(lines))
        lines[place] = lines[place][0], json.dumps(alter(json.loads(lines[place][1]), rng)).encode()
        return b"\n".join(b"=".join(line) for line in lines)[:limit]
    except (ValueError, RecursionError):
        return atheris.Mutate(data, limit)


def alter(value: Any, rng: random.Random) -> Any:
    places = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not places or rng.random() < 0.2:
        return rng.choice(VALUES)
    place = rng.choice(places)
    if rng.random() < 0.1:
        del value[place]
    else:
        value[place] = alter(value[place], rng)
    return value


def search(seeds: list[bytes], read: Callable[[bytes], None], mutate: Callable[..., bytes], arguments: list[str]) -> None:
    """Writes the seeds into the folder and searches; never returns."""
    folders = [Path(item) for item in arguments[1:] if not item.startswith("-")]
    if len(folders) != 1:
        print("error: expected one FOLDER for the inputs; see the head of this file", file=sys.stderr)
        sys.exit(2)
    folders[0].mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folders[0] / f"seed-{number}").write_bytes(seed)
        read(seed)
    atheris.Setup([*arguments, "-timeout=5", "-max_len=65536"], read, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    search(seeds(), read, mutate, sys.argv)
