"""The Python examples of the documentation type-check as a user's own strict code does, with the stubs of cv2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_examples_type_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mypy = pytest.importorskip("mypy.api")
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for number, code in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8"))):
            (tmp_path / f"{page.stem}_{number}.py".replace("-", "_")).write_text(code, encoding="utf-8")
    monkeypatch.chdir(ROOT)  # where the packages and the settings are
    out, err, code = mypy.run([*map(str, sorted(tmp_path.glob("*.py")))])
    assert (code, err) == (0, ""), out
