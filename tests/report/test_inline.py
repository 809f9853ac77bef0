"""Inline Markdown: a small safe subset that says the same on the page and in the Markdown file."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from illama.report.formats import to_html, to_markdown, to_plain

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def words(page: str) -> str:
    """What a reader of the page sees."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", page)).split())


@pytest.mark.parametrize("letter", ["\x1b", "\x00", "\x7f", "\u202e", "\u200b", "\udcff", "\ufeff"])
def test_what_a_terminal_or_a_page_acts_upon_stands_as_its_code(letter: str) -> None:
    text = f"a{letter}b `c{letter}d` **e{letter}f**"
    for written in (to_html(text), to_markdown(text), to_markdown(text, cell=True), to_plain(text)):
        assert letter not in written
        assert written.count("\\") >= 3
    assert to_plain("a\n\tb\N{NO-BREAK SPACE}c é 日本") == "a b\N{NO-BREAK SPACE}c é 日本"


@pytest.mark.parametrize(
    ("text", "page", "file"),
    [
        ("plain", "plain", "plain"),
        ("a `x_1 < 2` b", "a <code>x_1 &lt; 2</code> b", "a `x_1 < 2` b"),
        ("**no**, it is", "<strong>no</strong>, it is", "**no**, it is"),
        ("[paper](https://x.org/a?b=1&c=2)", '<a href="https://x.org/a?b=1&amp;c=2">paper</a>', None),
        ("[row](#result) of **[`a`](a.md)**", '<a href="#result">row</a> of <strong><a href="a.md"><code>a', None),
        ("1 * 2 * 3", "1 * 2 * 3", r"1 \* 2 \* 3"),
        ("class_token", "class_token", "class_token"),
        ("_class_", "_class_", r"\_class\_"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;", r"\<script\>alert(1)\</script\>"),
        ("two\n\nlines\t here", "two lines here", "two lines here"),
        ("a **b", "a **b", r"a \*\*b"),
        ("", "", ""),
    ],
)
def test_the_subset(text: str, page: str, file: str | None) -> None:
    assert to_html(text).startswith(page)
    assert file is None or to_markdown(text) == file


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "JavaScript:x", "data:text/html,x", "file:///etc/passwd", "vbscript:x"]
)
def test_a_link_that_could_run_something_is_text(url: str) -> None:
    text = f"[click]({url})"
    assert "<a" not in to_html(text)
    assert "<a" not in GITHUB.render(to_markdown(text))
    assert words(to_html(text)) == text


def test_quotes_do_not_leave_an_attribute() -> None:
    assert to_html('[x](a"onclick=b)') == '<a href="a&quot;onclick=b">x</a>'


@pytest.mark.parametrize("text", ["![x](https://x.org/a.png)", "see ![x](a.png)"])
def test_no_image_can_be_loaded(text: str) -> None:
    assert "<img" not in to_html(text)
    assert "<img" not in GITHUB.render(to_markdown(text))


SOURCES = st.text("ab1 `*_[]()\\|<>&;!#-+=.~$:x\u00b1\u00b2", max_size=24)
PIECES = st.sampled_from(["**b**", "`c|d`", "[e](f)", "**", "`", "](", "&amp;", "- ", "1. ", "# ", "\\", "~~"])


@given(st.one_of(SOURCES, st.lists(st.one_of(PIECES, SOURCES), max_size=5).map("".join)))
def test_page_and_file_say_the_same(text: str) -> None:
    said = " ".join(to_plain(text).split())
    assert words(to_html(text)) == said
    assert words(GITHUB.render(to_markdown(text))) == said
    assert words(GITHUB.render(f"# {to_markdown(text)}")) == said
    table = f"| a | b |\n|---|---:|\n| {to_markdown(text, cell=True)} | end |\n"
    cells = re.findall(r"<td[^>]*>(.*)</td>", GITHUB.render(table))
    assert [words(cell) for cell in cells] == [said, "end"]
    page, file = to_html(text), GITHUB.render(to_markdown(text))
    for tag in ("<strong>", "<code>", "<a href"):
        assert page.count(tag) == file.count(tag)
