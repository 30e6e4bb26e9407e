"""Fixtures of the backends' tests: a model in every form, and the backends that open files.

What needs torch is imported when a fixture is used, so that the other tests of this folder run without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from runtime.backends.base import Backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from tests.support.packages import need

if TYPE_CHECKING:
    from tests.support.backend_cases import Subject

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
