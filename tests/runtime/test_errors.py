"""Every error of the tree ends a command with its exit code and one line."""

import pytest

from runtime import cli
from runtime.errors import CheckFailed, DetectorError, InputError, MissingComponentError, ModelError, OutputError


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [(DetectorError, 2), (InputError, 2), (ModelError, 2), (OutputError, 2), (CheckFailed, 1), (MissingComponentError, 3)],
)
def test_a_command_ends_with_the_exit_code(
    kind: type[DetectorError], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise kind("a.png: bad\nname")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == exit_code
    assert capsys.readouterr().err == "error: a.png: bad\\nname\n"


def test_what_skips_bad_input_does_not_skip_failed_output() -> None:
    assert not issubclass(OutputError, InputError)
