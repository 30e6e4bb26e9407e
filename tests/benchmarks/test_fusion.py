"""The comparison of fusions reads finished runs and repeats none; training itself is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fusion


def finished(folder: Path, aps: list[float]) -> None:
    folder.mkdir()
    rows = ["epoch,total,AP", *(f"{number},1.5,{ap}" for number, ap in enumerate(aps, 1))]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


def test_finished_runs_are_compared_and_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, ap in enumerate((0.30, 0.34, 0.32)):
        finished(tmp_path / f"none-{seed}", [0.1, ap])
    finished(tmp_path / "asff-0", [0.1, 0.4])
    arguments = ["--data", "none", "--epochs", "2", "--seeds", "none=3", "asff=1", "--output", str(tmp_path)]
    assert fusion.main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["none", "32.00", "2.00", "30.00", "34.00", "32.00"], ["asff", "40.00", "-", "40.00"]]


@pytest.mark.parametrize("text", ["sun=3", "none=0", "none", "asff=x"])
def test_seeds_are_checked(text: str) -> None:
    with pytest.raises(SystemExit):
        fusion.parse(["--data", "d", "--seeds", text])
