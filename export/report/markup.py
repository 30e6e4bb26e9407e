"""Elements of a page as text, with everything that comes from outside escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence


def tag(name: str, *children: str, **attributes: object) -> str:
    """An element. Children are markup (use `text` for anything else); `class_` and `stroke_width` give `class`, `stroke-width`.

    Attributes that are None are left out; numbers are rounded to two decimals.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{''.join(children)}</{name}>" if children or name not in _VOID else f"<{name}{given}/>"


_VOID = ("image", "line", "rect", "path", "circle", "use", "input")


def text(value: object) -> str:
    """Any value as harmless text, in an element or an attribute; what no page may hold (control characters) is replaced."""
    safe = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return html.escape(safe, quote=True)


def _value(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, class_: str | None = None) -> str:
    """A table that scrolls in its own frame; cells are markup. The first column names the row."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in heading))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    inner = tag("table", tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", inner, class_="scroll", role="region", aria_label=label, tabindex=0)
