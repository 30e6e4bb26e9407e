"""Names the files that results go to, so that none overwrites an input or another result."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

from runtime.media.kinds import IMAGE_SUFFIXES
from runtime.media.sources import Source

_WRITABLE = IMAGE_SUFFIXES - {".pgm"}  # which holds gray images alone


def result_paths(
    sources: Sequence[Source], folder: Path, usual_name: Optional[Callable[[Source], Path]] = None
) -> dict[Source, Path]:
    """Chooses the path of each source's annotated copy in `folder`.

    That is the source's own name, to which .mp4 or .png is appended where its kind cannot be written, unless `usual_name` says
    otherwise. Where an input, a folder or another result has that name, a number is put before the suffix. Names count as
    equal if a file system that ignores case and Unicode forms would take them for one.

    Example:
        >>> sources = [Source(Path("in") / name, Path(name)) for name in ("a.gif", "a.gif.png", "b.jpg")]
        >>> [path.name for path in result_paths(sources, Path("out")).values()]
        ['a.gif.2.png', 'a.gif.png', 'b.jpg']
    """
    name_of = usual_name or _usual_name
    root = folder.resolve()
    taken = {_key(source.path.resolve()) for source in sources}
    taken.update(_key(parent) for source in sources for parent in (root / source.name).parents)
    chosen: dict[Source, Path] = {}
    # Those that keep their names choose first, so that most results are called like their sources.
    for source in sorted(sources, key=lambda source: name_of(source) != source.name):
        usual = root / name_of(source)
        numbers = (usual.with_name(f"{usual.stem}.{number}{usual.suffix}") for number in itertools.count(2))
        path = next(path for path in itertools.chain([usual], numbers) if _key(path) not in taken and not os.path.isdir(path))
        taken.add(_key(path))
        chosen[source] = folder / path.relative_to(root)
    return {source: chosen[source] for source in sources}


def _usual_name(source: Source) -> Path:
    name = source.name
    if source.is_video:
        return name if name.suffix == ".mp4" else name.with_name(f"{name.name}.mp4")
    return name if name.suffix.lower() in _WRITABLE else name.with_name(f"{name.name}.png")


def _key(path: Path) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
