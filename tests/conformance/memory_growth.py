"""Prints by how many bytes a process grows while a backend runs the same batches again and again.

`python -m tests.conformance.memory_growth CASE FOLDER`: a process of its own, so that nothing else grows in it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tests.conformance.cases import CASES, make_subject
from tests.support.engine_models import mini
from tests.support.small_models import noise


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(name: str, folder: Path) -> None:
    case = CASES[name]
    subject = replace(make_subject(folder), files={"fp32": mini(folder / "mini.onnx")})
    with case.open(subject) as backend:
        inputs = [noise(0, count) for count in (8, 1, 5)]
        for call in range(case.calls + case.calls // 10):
            if call == case.calls // 10:
                before = resident()
            backend.infer(inputs[call % len(inputs)])
        print(resident() - before)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
