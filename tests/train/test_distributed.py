"""Two processes train as one does; started once, by `torchrun`, for all checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.torch_fixtures import coco_set as make_coco_set

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both processes found, and how they ended."""
    folder = tmp_path_factory.mktemp("ranks")
    data = make_coco_set.__wrapped__(tmp_path_factory.mktemp("data"))  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.support.two_ranks", str(data), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (folder / "1.json").exists(), done.stderr
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {
        "ranks": ranks,
        "code": done.returncode,
        "said": done.stderr,
        "after": time.time() - (folder / "1.json").stat().st_mtime,
    }


def test_batch_norm_over_two_ranks_is_that_of_the_whole_batch(ended: dict[str, Any]) -> None:
    for found in ended["ranks"]:
        assert max(found["norms"].values()) < 1e-9, found["norms"]


@pytest.mark.parametrize("detector", ["yolov3", "retinanet"])
def test_two_ranks_and_parts_in_turn_train_as_one_process_does(detector: str, ended: dict[str, Any]) -> None:
    """In float64, with a batch of 5 images that neither two ranks nor the parts can share evenly."""
    for rank in ended["ranks"]:
        found = rank["gradients"][detector]
        assert found["unused"] == []  # or DistributedDataParallel would wait for them forever
        assert found["gradients"] < 1e-9
        assert found["accumulated"] < 1e-9
        assert found["weights"] < 1e-3
        assert found["statistics"] < 1e-6
        assert found["losses"] < 1e-9


def test_the_merged_evaluation_is_that_of_one_process(ended: dict[str, Any]) -> None:
    found = ended["ranks"][0]["evaluation"]
    assert found["equal"] and found["results"] > 100 and found["shares"] == [5, 3]


def test_a_killed_run_of_two_ranks_ends_as_an_undisturbed_one(ended: dict[str, Any]) -> None:
    for found in ended["ranks"]:
        assert (found["restart"]["step"], found["restart"]["difference"]) == ([1, 1], [])
    assert ended["ranks"][0]["restart"]["thawed"] == ["backbone", "fusion", "heads", "neck"]  # one was frozen for an epoch


def test_ranks_that_differ_are_refused(ended: dict[str, Any]) -> None:
    for found in ended["ranks"]:
        assert found["disagreement"].startswith("rank 1 of 2 differs from rank 0 in data; start all ranks with the same")


def test_an_error_on_one_rank_ends_all_within_10_seconds_with_its_line(ended: dict[str, Any]) -> None:
    assert ended["code"] != 0 and ended["after"] < 10
    errors = [line for line in ended["said"].splitlines() if line.startswith(("error", "unexpected", "interrupted"))]
    assert errors == ["error: rank 1 cannot go on"]
    assert ended["said"].count("training tiny on 8 images") == 3  # rank 0 alone talks
