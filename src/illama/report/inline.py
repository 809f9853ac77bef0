"""The inline Markdown of a report: `code`, **bold**, [text](url). Everything else is text and stays text.

It is parsed once and written twice, so that the page and the Markdown file say the same: a lone asterisk is an asterisk
in both, and `<` opens no tag in either.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Literal

from illama.console.text import safe_lines

# Stars count only between white space or punctuation and backticks only alone: where Markdown's own rules for them
# are beyond a line, they are text in both.
_BREAKABLE = re.compile(r"[^\S\N{NO-BREAK SPACE}]+")  # one space for all; a no-break space stays what it is
_OUTSIDE = r"[^\s!-)+-/:-@\[-`{-~]"
_SPAN = re.compile(
    r"(?<!`)` ?(?P<code>[^`\s](?:[^`]*[^`\s])?) ?`(?!`)"
    rf"|(?<!{_OUTSIDE})\*\*(?=\S)(?P<bold>[^*]+)(?<=\S)\*\*(?!\*|{_OUTSIDE})"
    r"|\[(?P<label>[^\[\]]+)\]\((?P<url>[^()\s<>`\\]+)\)"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SAFE_SCHEMES = ("http:", "https:", "mailto:")  # javascript: and data: would run what a cell says
# What GitHub's Markdown would read as markup; underscores within words mean nothing there and stay readable.
_MARKUP = re.compile(r"[!#]$|[*`~$\[\]<>|]|(?<![^\W_])_|_(?![^\W_])|\\(?=[!-/:-@\[-`{-~]|$)|&(?=#?\w+;)")
_BLOCK_START = re.compile(r"^(#{1,6}(?= |$)|[-+](?=[ -]|$)|\d{1,9}(?=[.)]( |$)))")


@dataclass(frozen=True)
class Span:
    """A piece of a text. "text" and "code" have `text`; "bold" and "link" have `inside`, a link also `url`."""

    kind: Literal["text", "code", "bold", "link"]
    text: str = ""
    inside: tuple[Span, ...] = ()
    url: str = ""


def parse(text: str) -> tuple[Span, ...]:
    """Cut a text into spans. White space is one space, no-break spaces stay; a link to an unsafe scheme stays text.

    Characters that a page or a terminal would act upon stand as their codes.
    """
    return tuple(_spans(safe_lines(_BREAKABLE.sub(" ", text.strip()))))


def _spans(text: str) -> list[Span]:
    spans, at = [], 0
    for match in _SPAN.finditer(text):
        span = _span(match)
        if span is None:
            continue
        if match.start() > at:
            spans.append(Span("text", text[at : match.start()]))
        spans.append(span)
        at = match.end()
    if at < len(text):
        spans.append(Span("text", text[at:]))
    return spans


def _span(match: re.Match[str]) -> Span | None:
    if match["code"] is not None:
        return Span("code", match["code"])
    if match["bold"] is not None:
        return Span("bold", inside=tuple(_spans(match["bold"])))
    scheme = _SCHEME.match(match["url"])
    if scheme is not None and scheme[0].lower() not in _SAFE_SCHEMES:
        return None
    return Span("link", inside=tuple(_spans(match["label"])), url=match["url"])


def to_html(text: str) -> str:
    """A text with inline Markdown as HTML, everything escaped."""
    return "".join(map(_html, parse(text)))


def _html(span: Span) -> str:
    inside = "".join(map(_html, span.inside))
    if span.kind == "bold":
        return f"<strong>{inside}</strong>"
    if span.kind == "link":
        return f'<a href="{html.escape(span.url)}">{inside}</a>'
    return f"<code>{html.escape(span.text)}</code>" if span.kind == "code" else html.escape(span.text)


def to_markdown(text: str, *, cell: bool = False) -> str:
    """A text with inline Markdown as GitHub's Markdown; what is not of the subset is escaped.

    Args:
        text: The text.
        cell: It stands in a table, where a bar ends a cell even within code.
    """
    written = "".join(_markdown(span, cell) for span in parse(text))
    return written if cell else _BLOCK_START.sub(_escape_start, written)


def _markdown(span: Span, cell: bool) -> str:
    inside = "".join(_markdown(part, cell) for part in span.inside)
    if span.kind == "bold":
        return f"**{inside}**"
    if span.kind == "link":
        url = span.url.replace("&", "&amp;").replace("|", "%7C")
        return f"[{inside}]({url})"
    if span.kind == "code":
        return f"`{span.text.replace('|', chr(92) + '|') if cell else span.text}`"
    return _MARKUP.sub(lambda match: "&amp;" if match[0] == "&" else f"\\{match[0]}", span.text)


def _escape_start(match: re.Match[str]) -> str:
    """A paragraph that begins like a heading or a list item is none."""
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"


def to_plain(text: str) -> str:
    """A text without its markup."""
    return "".join(map(_plain, parse(text)))


def _plain(span: Span) -> str:
    return span.text + "".join(map(_plain, span.inside))
