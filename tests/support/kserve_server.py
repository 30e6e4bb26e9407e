"""A small server of the KServe v2 protocol (HTTP, with JSON and binary tensors) on ONNX Runtime, in the place of Triton."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {"FP32": np.float32, "UINT8": np.uint8}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    config: dict[str, Any]
    session: Any
    batches: list[int]
    is_over = False

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == f"/v2/models/{self.config['name']}/config":
            self._send(200, json.dumps(self.config).encode())
        else:
            self._send(400, json.dumps({"error": f"Request for unknown model: {self.path}"}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.is_over:  # a connection that is kept alive outlives the server
            self.close_connection = True
            return
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request, rest = json.loads(body[:length]), body[length:]
        (given,) = request["inputs"]
        images = self._tensor(given, rest)
        most = int(self.config.get("max_batch_size", 0))
        if most and len(images) > most:
            self._send(400, json.dumps({"error": f"batch size must be <= {most}"}).encode())
            return
        self.batches.append(len(images))
        names = [item["name"] for item in request["outputs"]]
        arrays = self.session.run(names, {given["name"]: images})
        outputs, blobs = [], b""
        for wanted, array in zip(request["outputs"], arrays):
            described: dict[str, Any] = {"name": wanted["name"], "datatype": "FP32", "shape": list(array.shape)}
            if wanted.get("parameters", {}).get("binary_data"):
                described["parameters"] = {"binary_data_size": array.nbytes}
                blobs += array.tobytes()
            else:
                described["data"] = array.ravel().tolist()
            outputs.append(described)
        head = json.dumps({"model_name": self.config["name"], "outputs": outputs}).encode()
        self._send(200, head + blobs, Inference_Header_Content_Length=str(len(head)))

    @staticmethod
    def _tensor(given: dict[str, Any], rest: bytes) -> np.ndarray:
        kind = _TYPES[given["datatype"]]
        if "binary_data_size" in given.get("parameters", {}):
            return np.frombuffer(rest[: given["parameters"]["binary_data_size"]], kind).reshape(given["shape"])
        return np.array(given["data"], kind).reshape(given["shape"])


@contextlib.contextmanager
def serve(model: Path, config: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Serves a model file under a Triton configuration; yields its address, and the sizes of the batches that it ran."""
    from runtime.backends.ort import open_session

    batches: list[int] = []
    handler: Any = type("Handler", (_Handler,), {"config": config, "session": open_session(model), "batches": batches})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"triton://127.0.0.1:{server.server_address[1]}/{config['name']}", batches
    finally:
        handler.is_over = True
        server.shutdown()
        thread.join()
        server.server_close()
