"""Runs the benchmarks of the runtime and of the loss, and with --data those of the detector and of the training data.

Example: `python -m benchmarks --data datasets/coco`
"""

from __future__ import annotations

from benchmarks import data, detector, loss, runtime
from runtime import cli


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser(
        "benchmarks", "Run the benchmarks of runtime, loss, detector and data.", "python -m benchmarks --data datasets/coco"
    )
    parser.add_argument("--data", help="dataset folder for the benchmarks that need images")
    options = parser.parse_args(arguments)
    runtime.main([])
    loss.main([])
    if options.data:
        detector.main(["--data", options.data])
        data.main(["--data", options.data])
    return 0


if __name__ == "__main__":
    cli.run(main)
