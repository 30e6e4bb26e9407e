"""Checkpoints: saved and loaded unchanged, and refused where they are damaged, foreign or unsafe."""

from __future__ import annotations

import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.errors import InputError, ModelError, OutputError
from tests.support.small_models import CLASSES, Trap, settled, tiny
from train import checkpoint
from train.checkpoint import Checkpoint
from train.spec import model_spec
from train.weights import load_model


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    config = tiny()
    model = settled(config)
    saved = Checkpoint(config, model_spec(config, CLASSES), model.state_dict(), {"state": {}, "param_groups": []}, 3, 0.25)
    checkpoint.save(tmp_path / "m.pt", saved)
    loaded = checkpoint.load(tmp_path / "m.pt")
    assert (loaded.config, loaded.spec, loaded.epoch, loaded.best_ap) == (config, saved.spec, 3, 0.25)
    assert loaded.optimizer == saved.optimizer
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m.pt")(images), model(images), rtol=0, atol=0)


def _damage(file: Path, how: str) -> None:
    content = torch.load(file, weights_only=True)
    key = next(iter(content["weights"]))
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-2000])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "text":
        file.write_text("not a checkpoint")
    elif how == "plain pickle":
        file.write_bytes(pickle.dumps({"kind": "yolov3-asff-checkpoint"}))
    elif how == "foreign":
        torch.save({"model": content["weights"]}, file)
    else:
        if how == "newer":
            content["version"] = 99
        elif how == "lacks a key":
            del content["weights"][key]
        elif how == "other shape":
            content["weights"][key] = torch.zeros(1)
        elif how == "not tensors":
            content["weights"][key] = "text"
        elif how == "not finite":
            content["weights"][key][0] = float("nan")
        elif how == "config":
            content["config"] = "{}"
        elif how == "spec":
            del content["spec"]["anchors"]
        elif how == "no model":
            content["config"] = content["config"].replace('"compress": 16', '"compress": 2.5')
        elif how == "unknown backbone":
            content["config"] = content["config"].replace("darknet53", "darknet99")
        elif how == "other class count":
            content["spec"]["class_names"] = '["one"]'
        torch.save(content, file)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "text",
        "plain pickle",
        "foreign",
        "newer",
        "lacks a key",
        "other shape",
        "not finite",
        "not tensors",
        "config",
        "spec",
    ]
    + ["other class count", "no model", "unknown backbone"],
)
def test_a_bad_file_is_refused_by_name(how: str, make_checkpoint: Callable[..., Path]) -> None:
    file = make_checkpoint()
    _damage(file, how)
    with pytest.raises(ModelError, match=str(file)):
        load_model(file)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_model(tmp_path / "none.pt")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    torch.save({"kind": "yolov3-asff-checkpoint", "weights": Trap(trap)}, tmp_path / "evil.pt")
    with pytest.raises(ModelError):
        checkpoint.load(tmp_path / "evil.pt")
    assert not trap.exists()


MUCH = b"\x8a\x05" + (12 * 10**9).to_bytes(5, "little")  # a pickled number
BOMBS = {
    "bytearray": b"c__builtin__\nbytearray\n" + MUCH + b"\x85R",
    "tensor": b"ctorch\nTensor\n(" + MUCH + b"tR",
    "storage": b"ctorch.storage\nUntypedStorage\n" + MUCH + b"\x85R",
    "stored tensor": b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + MUCH + b"NtQ",
    "text": b"X\xff\xff\xff\xf0abc",
}
"""Pickles of a few bytes that ask for gigabytes."""


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("kind", ["legacy", "zip"])
def test_memory_is_bounded_by_the_size_of_the_file(bomb: str, kind: str, tmp_path: Path) -> None:
    file, content = tmp_path / "bomb.pt", b"\x80\x02" + BOMBS[bomb] + b"."
    if kind == "legacy":
        file.write_bytes(b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in {"data.pkl": content, "version": b"3\n", "byteorder": b"little"}.items():
                archive.writestr(f"bomb/{name}", part)
    limits, before = resource.getrlimit(resource.RLIMIT_DATA), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"bomb\.pt: (asks for far more memory|not a checkpoint that can be read)"):
        checkpoint.read(file)
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 1_000_000  # KB


def test_compressed_checkpoints_are_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "packed.pt"
    with zipfile.ZipFile(make_checkpoint()) as whole, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, bytes(entry.file_size))
    with pytest.raises(ModelError, match=r"packed\.pt: its \d+ bytes are compressed to \d+.*save it with torch.save"):
        checkpoint.read(file)


def test_a_full_disk_leaves_the_old_checkpoint(make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_checkpoint()
    before = file.read_bytes()

    loaded = checkpoint.load(file)

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(bytes(data)[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoint.save(file, loaded)
    assert file.read_bytes() == before
    assert [item.name for item in file.parent.iterdir()] == [file.name]


def test_the_same_checkpoint_gives_the_same_bytes(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The export's lineage is a hash of this file."""
    loaded = checkpoint.load(make_checkpoint())
    for name in ("a.pt", "b.pt"):
        checkpoint.save(tmp_path / name, loaded)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
