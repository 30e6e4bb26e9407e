"""Runs models that a Triton Inference Server serves, by its HTTP protocol (KServe v2 with binary tensors)."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Optional
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import check_images, check_outputs
from runtime.backends.signature import INPUT_NAME
from runtime.components import load
from runtime.console.terminal import printable
from runtime.errors import InputError, ModelError
from runtime.files import PathLike
from runtime.spec import ModelSpec

SCHEME = "triton://"
"""Begins the address of a served model: `triton://host:port/model`."""
SPEC_PARAMETER = "yolov3_asff_spec"
"""Parameter of Triton's model configuration that holds the spec."""

_ADDRESS = re.compile(r"triton://(?P<server>[^/?#@\s]+:\d+)/(?P<model>[^/?#\s]+)(?:/(?P<version>\d+))?/?")
_TYPES = {"float32": "FP32", "uint8": "UINT8"}
_TIMEOUT = 60.0  # seconds for a connection, and for an answer


def served_address(model: PathLike) -> Optional[str]:
    """Returns the address of a served model; None for a file."""
    text = os.fspath(model)
    start = SCHEME[:-1]  # a `Path` of the address has lost a slash
    return SCHEME + text[len(start) :].lstrip("/") if text.startswith(start) else None


class TritonBackend:
    """Runs a model on a Triton server, that `python -m export.triton` made a repository for.

    Any thread may call `infer`; the server gets one request at a time.

    Args:
        address: `triton://host:port/model`, with `/version` behind it for another than the server's choice. The port is that
            of HTTP, 8000 by default.

    Raises:
        InputError: not such an address, or no server answers there.
        MissingComponentError: tritonclient is not installed.
        ModelError: the server has no such model that is ready, or it is not configured with a spec.
    """

    def __init__(self, address: str) -> None:
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise InputError(f"{address}: expected {SCHEME}host:port/model, with /version where that is not to be chosen")
        self._client = load("tritonclient.http", "triton")
        self._address, self._server = address, found["server"]
        self._model, self._version = quote(found["model"], safe=""), found["version"] or ""
        # The client is bound to the thread that made it, where gevent keeps descriptors until it is told to end.
        self._thread = ThreadPoolExecutor(1, "triton")
        self._connection: Any = None
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._configure()
            stack.pop_all()

    def _configure(self) -> None:
        """Reads what the server says of the model."""
        config = self._ask(lambda client: client.get_model_config(self._model, self._version), InputError)
        try:
            self._spec = ModelSpec.from_metadata(json.loads(config["parameters"][SPEC_PARAMETER]["string_value"]))
            self._max_batch = int(config.get("max_batch_size", 0))
            dims = tuple(int(side) for side in config["input"][0]["dims"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"{self._address}: its configuration has no model spec; make the repository with `python -m export.triton`"
            ) from error
        self._batch_size = None if self._max_batch else dims[0]
        if dims[0 if self._max_batch else 1 :] != self._spec.input_shape:
            raise ModelError(f"{self._address}: takes images {list(dims)}, its spec says {list(self._spec.input_shape)}")

    @property
    def spec(self) -> ModelSpec:
        """Spec in the server's configuration of the model."""
        return self._spec

    @property
    def batch_size(self) -> Optional[int]:
        """The only batch size that the model takes, or None for any; the server's largest batch is kept to here."""
        return self._batch_size

    @property
    def title(self) -> str:
        """The server."""
        return f"Triton at {self._server}"

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model; see `Backend.infer`."""
        check_images(images, self._spec, self._batch_size)
        step = self._max_batch or len(images)
        parts = [self._run(images[start : start + step]) for start in range(0, len(images), step)]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts)]

    def _run(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        given = self._client.InferInput(INPUT_NAME, list(images.shape), _TYPES[self._spec.input_type])
        given.set_data_from_numpy(np.ascontiguousarray(images), binary_data=True)
        wanted = [self._client.InferRequestedOutput(name, binary_data=True) for name in self._spec.outputs]
        result = self._ask(
            lambda client: client.infer(self._model, [given], model_version=self._version, outputs=wanted), ModelError
        )
        outputs: Sequence[Any] = [result.as_numpy(name) for name in self._spec.outputs]
        check_outputs(outputs, self._spec.outputs, len(images))
        return list(outputs)

    def _ask(self, question: Any, unreachable: type[InputError]) -> Any:
        """Asks the server.

        Raises:
            ModelError: the server refuses, or the backend was closed.
            InputError: of the type `unreachable`, where the server does not answer.
        """
        try:
            answer = self._thread.submit(self._ask_here, question, unreachable)
        except RuntimeError as error:
            raise ModelError("the model was closed; open it again") from error
        return answer.result()

    def _ask_here(self, question: Any, unreachable: type[InputError]) -> Any:
        """Asks the server on the client's thread."""
        if self._connection is None:
            options = {"connection_timeout": _TIMEOUT, "network_timeout": _TIMEOUT}
            self._connection = self._client.InferenceServerClient(self._server, **options)
        try:
            return question(self._connection)
        except load("tritonclient.utils", "triton").InferenceServerException as error:
            raise ModelError(f"{self._address}: the server refuses ({printable(error, 300)})") from error
        except Exception as error:  # of sockets, gevent and HTTP, which have no common base
            self._connection = None  # whatever is left in it is of this question
            reason = printable(error, 200) or type(error).__name__
            raise unreachable(f"{self._address}: no Triton server answers by HTTP ({reason}); is it running there?") from error

    def _leave(self) -> None:
        """Ends the connection and what gevent holds for the client's thread."""
        if self._connection is not None:
            self._connection.close()
        load("gevent", "triton").get_hub().destroy(destroy_loop=True)

    def close(self) -> None:
        """Lets no more runs begin; the connection ends with the last of them."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._thread.submit(self._leave)
        self._thread.shutdown(wait=False)

    def __enter__(self) -> TritonBackend:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
