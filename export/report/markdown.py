"""Renders Markdown from the data of `report.json`: the comment for a pull request, and the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from export.report import summary
from export.report.derived import calibrations, class_deltas, most_changed
from export.report.formats import make_environment

Data = Mapping[str, Any]

_SPECIAL = re.compile(r"[\\`*\[\]|<>~&$]|(?<!\w)_|_(?!\w)")


def render_comment(data: Data) -> str:
    """Renders the verdict for a comment on a pull request."""
    return _render("comment.md.jinja", data)


def render_card(data: Data) -> str:
    """Renders the model card."""
    return _render("model_card.md.jinja", data)


def escape(value: Any) -> str:
    """Escapes a value, so that a name is neither markup nor a line break, and calls on nobody."""
    text = str(round(value, 4) if isinstance(value, float) else value)
    text = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return _SPECIAL.sub(r"\\\g<0>", text).replace("@", "@\N{WORD JOINER}")


def _render(template: str, data: Data) -> str:
    found = make_environment(autoescape=False, finalize=escape)
    deltas = class_deltas(data)
    text = found.get_template(template).render(
        data=data,
        summary=summary,
        measured=[file for file in data["files"] if file["measured"]],
        class_deltas=deltas,
        calibrations=calibrations(data),
        most_changed=most_changed(deltas),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
