"""Fixtures of all tests. Nothing here needs torch, so that the runtime's tests run without it."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager

import cv2
import hypothesis
import pytest

from runtime import cli

pytest_plugins = ["tests.support.known_model"]

# A machine at work may stop for longer than any deadline, and what is drawn may be rare by chance.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much]
)
hypothesis.settings.load_profile("tests")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it, and children would inherit that


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes names that are no text in what a test printed: the processes of `-n` exchange UTF-8 alone."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _steady() -> None:
    """Every test starts from the same random state."""
    cv2.setRNGSeed(0)


@pytest.fixture
def full_disk() -> Callable[..., AbstractContextManager[None]]:
    """`with full_disk(size):` no file can grow beyond `size` bytes (2048); it holds for pytest's own output too."""

    @contextlib.contextmanager
    def limited(size: int = 2048) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run a command's `main` as the command line does; its exit code, stdout, and stderr with the log lines.

    The lines that say what a model runs in and what is in a split are left out: they have tests of their own.
    """

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as exit_:
            cli.run(lambda: main([str(item) for item in arguments]))
        out, err = capfd.readouterr()
        told = ("runtime.backends.open", "runtime.datasets.summary")
        said = [record.getMessage() for record in caplog.records if record.name not in told]
        return int(exit_.value.code or 0), out, err + "".join(f"{line}\n" for line in said)

    return call
