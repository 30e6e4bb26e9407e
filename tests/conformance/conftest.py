"""Fixtures of the conformance suite: a model in every form, and the backends that open files."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtime.backends.base import Backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend
from tests.conformance.cases import Subject, make_subject
from tests.support.packages import need

_FILE_BACKENDS = {"onnxruntime": OrtBackend, "openvino": OpenVinoBackend}


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(params=_FILE_BACKENDS)
def open_file(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    """Every installed backend that opens files."""
    need(request.param)
    return _FILE_BACKENDS[request.param]
