"""A document as one HTML page that loads nothing: style and figures are in it, and there are no scripts."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from illama.console.text import safe_lines
from illama.report.document import Document
from illama.report.inline import to_html, to_plain

if TYPE_CHECKING:
    from jinja2 import Template

TABLE_OF_CONTENTS_FROM = 3  # sections; fewer are seen at a glance


def html(document: Document) -> str:
    """The document as one page. It follows the reader's choice of light or dark, and opens from disk without network.

    Figures are images in the page (data addresses) and not parts of it: names within one cannot clash with names in
    another, and nothing in an image is ever run.
    """
    from markupsafe import Markup

    return _template().render(
        document=document,
        anchors=_anchors(section.title for section in document.sections),
        with_contents=len(document.sections) >= TABLE_OF_CONTENTS_FROM,
        inline=lambda text: Markup(to_html(text)),
        plain=to_plain,
        lines=safe_lines,
        source=lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii"),
        kind=lambda block: type(block).__name__,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("illama.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def _anchors(titles: Iterable[str]) -> list[str]:
    """A name for each section to link to, unique on the page."""
    anchors: list[str] = []
    for number, title in enumerate(titles, start=1):
        name = re.sub(r"[^a-z0-9]+", "-", to_plain(title).lower()).strip("-")
        anchors.append(name if name and name not in anchors else f"{name}-{number}".strip("-"))
    return anchors
