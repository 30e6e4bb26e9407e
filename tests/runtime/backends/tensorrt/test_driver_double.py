"""The real CUDA packages over a host-memory libcuda: order, ownership, threads, exit; never numbers of a GPU."""

from __future__ import annotations

import json

import pytest

from tests.runtime.backends.tensorrt.driver_scenarios import ON_AN_INTEGRATED_GPU, SCENARIOS
from tests.support import host_cuda

MODULE = "tests.runtime.backends.tensorrt.driver_scenarios"


@pytest.fixture(scope="module", params=host_cuda.PACKAGES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each scenario; all of them run in one process, or in one with an integrated GPU."""
    host_cuda.need_package(request.param)
    problems: dict[str, str] = {}
    programs = []
    for is_integrated in (False, True):
        folder = tmp_path_factory.mktemp("double")
        programs.append(host_cuda.start(folder, "-m", MODULE, folder, is_integrated=is_integrated, package=request.param))
    for program in programs:
        code, out, err = program.finish()
        assert code == 0, err
        problems.update(json.loads(out))
    return problems


@pytest.mark.parametrize("name", [*SCENARIOS, *ON_AN_INTEGRATED_GPU])
def test_scenario(name: str, found: dict[str, str]) -> None:
    assert found[name] == ""
