"""`python -m benchmarks`: every benchmark, one after the other; those that need images only with --data."""

from __future__ import annotations

from benchmarks import data, detector, loss, runtime
from runtime import cli


def main(arguments: list[str] | None = None) -> int:
    """Run them all; returns the exit code."""
    parser = cli.parser("benchmarks", "Run every benchmark.", "python -m benchmarks --data datasets/coco")
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
