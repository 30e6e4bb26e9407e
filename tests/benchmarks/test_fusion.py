"""The comparison of fusions: what it trains, and its table; training itself is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fusion
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.run.options import RunOptions


def test_every_run_is_trained_as_asked_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: TrainConfig, options: RunOptions, resume: Checkpoint | None) -> None:
        assert (config.epochs, config.evaluate_every, config.size, resume) == (2, 2, 128, None)
        name = f"{config.model.fusion}-{config.seed}"
        assert options.output == tmp_path / name
        options.output.mkdir()
        (options.output / "metrics.csv").write_text(f"epoch,total,AP\n1,1.5,\n2,1.5,{aps.pop(name)}\n")

    monkeypatch.setattr(fusion, "train", train)
    aps = {"none-0": 0.30, "none-1": 0.34, "none-2": 0.32, "asff-0": 0.4}
    arguments = ["--data", "none", "--size", "128", "--epochs", "2", "--seeds", "none=3", "asff=1", "--output", str(tmp_path)]
    assert fusion.main(arguments) == 0 and not aps
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["none", "32.00", "2.00", "30.00", "34.00", "32.00"], ["asff", "40.00", "-", "40.00"]]


@pytest.mark.parametrize("text", ["sun=3", "none=0", "none", "asff=x"])
def test_seeds_are_checked(text: str) -> None:
    with pytest.raises(SystemExit):
        fusion.parse(["--data", "d", "--seeds", text])
