"""The real CUDA packages over a host-memory libcuda: order, ownership, threads, exit; never numbers of a GPU."""

from __future__ import annotations

import json

import pytest

from tests.runtime.backends.tensorrt.driver_scenarios import SCENARIOS
from tests.support import host_cuda

MODULE = "tests.runtime.backends.tensorrt.driver_scenarios"


@pytest.fixture(scope="module", params=host_cuda.PACKAGES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each scenario; all of them run in one process."""
    host_cuda.need_package(request.param)
    folder = tmp_path_factory.mktemp("double")
    code, out, err = host_cuda.start(folder, "-m", MODULE, folder, package=request.param).finish()
    assert code == 0, err
    problems: dict[str, str] = json.loads(out)
    return problems


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, found: dict[str, str]) -> None:
    assert found[name] == ""
