"""Fixtures of the backends' tests: a model in every form, and the backends that open files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from runtime.backends.base import Backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from tests.support.packages import need

if TYPE_CHECKING:
    from tests.support.backend_cases import Subject

# These hold PyTorch's backend and exported models to the same rules; without torch the rest of the folder still runs.
collect_ignore = [] if find_spec("torch") else ["test_backends.py", "test_onnx_files.py"]

_FILE_BACKENDS = {"onnxruntime": OrtBackend, "openvino": OpenVinoBackend}


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    from tests.support.backend_cases import make_subject

    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(params=_FILE_BACKENDS)
def open_file(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    """Every installed backend that opens files."""
    need(request.param)
    return _FILE_BACKENDS[request.param]
