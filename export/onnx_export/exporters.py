"""Names torch's two exporters and the ONNX operator sets that each writes."""

from __future__ import annotations

from runtime.errors import InputError

TRACER, TORCH_EXPORT = "tracer", "torch-export"
EXPORTERS = {TRACER: (17, 16), TORCH_EXPORT: (18, 19, 20)}
"""Operator sets that each exporter writes, the default first. GridSample came with 16; TensorRT 8.6 reads up to 17."""
DEFAULT_EXPORTER = TRACER


def choose_opset(exporter: str, opset: int | None) -> int:
    """Returns the operator set to write; None chooses the exporter's default.

    Raises:
        InputError: the exporter does not write it.
    """
    written = EXPORTERS[exporter]
    if opset is None:
        return written[0]
    if opset in written:
        return opset
    others = [name for name, opsets in EXPORTERS.items() if opset in opsets]
    remedy = f", or take --exporter {others[0]}" if others else ""
    expected = " or ".join(map(str, sorted(written)))
    raise InputError(f"--opset: --exporter {exporter} writes {expected}, got {opset}; leave --opset out{remedy}")
