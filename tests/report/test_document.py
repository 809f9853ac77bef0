"""A document as one page without network, as Markdown, and as files that are whole or absent."""

from __future__ import annotations

import base64
import html as stdlib_html
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.dom.minidom import parseString

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure as Drawing

from illama.errors import UserError
from illama.report import (
    Block,
    Bullets,
    Code,
    Document,
    Figure,
    Section,
    Table,
    Text,
    html,
    markdown,
    svg_bytes,
    write_document,
)

SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt"/>\n'
VOID = {"meta", "img", "br", "hr", "link", "input"}


def document(*blocks: Block, sections: int = 1) -> Document:
    first = Section("First & <last>", blocks)
    return Document("A `title` & more", "What **this** is.", (first, *[Section("Other", ())] * (sections - 1)))


EVERYTHING: tuple[Block, ...] = (
    Text("a < b, `c & d`"),
    Bullets(("one", "**two** <b>")),
    Code("illama train <recipe> && echo '`'"),
    Table(("row", "paper | ours"), (("a|b", "1.0 \u00b1 0.2"), ("`c|d`", "")), "A caption with <i>"),
    Figure("curves", SVG, 'an "alt" <x>', "Fig. 1, **bold**"),
)


class Page(HTMLParser):
    """Tags with their attributes; complains of tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_well_formed_and_escaped() -> None:
    text = html(document(*EVERYTHING))
    page = Page(text)
    assert "&lt;last&gt;" in text
    assert "illama train &lt;recipe&gt; &amp;&amp; echo" in text
    assert [len(page.every(tag)) for tag in ("h1", "ul", "li", "pre", "table", "img", "b", "i", "x")] == [
        *(1, 1, 2, 1, 1, 1),
        *(0, 0, 0),
    ]
    assert page.every("img")[0]["alt"] == 'an "alt" <x>'
    assert "<title>A title &amp; more</title>" in text


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = html(document(*EVERYTHING, Text("[paper](https://x.org)")))
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in page.every("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert [attributes["href"] for attributes in page.every("a")] == ["https://x.org"]  # is followed, not loaded
    policy = next(tag["content"] for tag in page.every("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none';")


def test_the_figure_in_the_page_is_the_file(tmp_path: Path) -> None:
    write_document(document(*EVERYTHING), tmp_path)
    source = Page((tmp_path / "report.html").read_text("utf-8")).every("img")[0]["src"]
    assert base64.b64decode(str(source).split(",")[1]) == SVG == (tmp_path / "curves.svg").read_bytes()


def test_light_and_dark_differ_and_both_can_be_read() -> None:
    """Contrast of ink, quiet ink and links on the paper: at least 4.5 (WCAG AA), computed from the page's colours."""
    text = html(document())
    dark_at = text.index("prefers-color-scheme: dark")
    schemes = [dict(re.findall(r"--(\w+): #(\w{6})", part)) for part in (text[:dark_at], text[dark_at:])]
    assert schemes[0] != schemes[1]
    for colors in schemes:
        for ink in ("ink", "quiet", "link"):
            for ground in ("paper", "shade"):
                light, dark = sorted((_luminance(colors[ink]), _luminance(colors[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground, colors)


def _luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("sections", [1, 2, 3, 5])
def test_contents_from_three_sections_on(sections: int) -> None:
    page = Page(html(document(sections=sections)))
    anchors = [str(section["id"]) for section in page.every("section")]
    assert len(set(anchors)) == sections
    expected = [f"#{anchor}" for anchor in anchors] if sections > 2 else []
    assert [link["href"] for link in page.every("a")] == expected


def test_titles_without_latin_letters_are_linked_as_well() -> None:
    sections = tuple(Section(title, ()) for title in ("\u8868", "\u56fe", "A", "A", "a-4"))
    page = Page(html(Document("t", "", sections)))
    anchors = [section["id"] for section in page.every("section")]
    assert len(set(anchors)) == 5
    assert all(anchors)


def test_markdown_has_the_same_content() -> None:
    text = markdown(document(*EVERYTHING))
    shown = MarkdownIt("commonmark").enable("table").render(text)
    page = Page(shown)
    assert text.startswith("# A `title` & more\n\nWhat **this** is.\n\n## First & \\<last\\>\n")
    assert [len(page.every(tag)) for tag in ("h1", "h2", "li", "pre", "tr", "td", "img")] == [1, 1, 2, 1, 3, 4, 1]
    assert page.every("img")[0]["src"] == "curves.svg"
    assert "a|b" in shown
    assert "<code>c|d</code>" in shown
    assert stdlib_html.unescape(shown).count("illama train <recipe> && echo '`'") == 1
    assert text.endswith("Fig. 1, **bold**\n")


def test_code_with_fences_stays_in_its_block() -> None:
    code = "cat <<E\n```\nx\n````\nE"
    shown = MarkdownIt("commonmark").render(markdown(document(Code(code))))
    inside = re.findall(r"<pre><code>(.*?)</code></pre>", shown, re.DOTALL)
    assert [stdlib_html.unescape(text) for text in inside] == [code + "\n"]


def test_columns_stand_as_promised() -> None:
    assert "|---|---:|---:|" in markdown(document(Table(("a", "b", "c"), ())))
    assert "tabular-nums" in html(document())


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_document(document(*EVERYTHING, Figure("drawn", svg_bytes(drawing()), "", "")), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["curves.svg", "drawn.svg", "report.html", "report.md"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def drawing() -> Drawing:
    figure = Drawing(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], "o-", label="\u5b57")  # no font has this sign: a box, and no warning
    axes.fill_between([1, 2], [2, 3], [4, 5])
    axes.legend()
    return figure


def test_a_drawing_has_no_date_and_a_white_ground() -> None:
    figure = drawing()
    first = svg_bytes(figure)
    assert first == svg_bytes(drawing())
    assert b"<dc:date>" not in first
    assert b"fill: #ffffff" in first
    assert b"<text" not in first  # no font of the reader's machine takes part
    references = re.findall(rb'(?:xlink:href|href|src)="([^"]*)"', first)
    assert all(reference.startswith(b"#") for reference in references)


@pytest.mark.parametrize("name", ["a\x1bb", "a\x00b", "a\udcffb", "a--b", "a&<b>", "a\u202eb", "a\nb"])
def test_a_name_of_any_kind_leaves_a_picture_that_opens(name: str) -> None:
    canvas = Drawing()
    canvas.add_subplot().set_title(name, parse_math=False)
    parseString(svg_bytes(canvas))


def test_the_files_are_named_page_first(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_document(document(*EVERYTHING), folder)
    assert paths == [folder / "report.html", folder / "report.md", folder / "curves.svg"]
    assert sorted(folder.iterdir()) == sorted(paths)


def test_a_report_is_replaced(tmp_path: Path) -> None:
    write_document(document(Text("old")), tmp_path)
    write_document(document(Text("new")), tmp_path)
    assert "old" not in (tmp_path / "report.md").read_text() + (tmp_path / "report.html").read_text()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"the folder .*file.* cannot be made: .*; give another one"):
            write_document(document(), folder)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="the superuser may write anywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write .*report\.html.*Permission denied"):
        write_document(document(), tmp_path)


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_document(document(Text("old")), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*report\.html: No space left on device"):
        write_document(document(Text("new")), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_stands_in_the_way_of_a_figure_is_named(tmp_path: Path) -> None:
    (tmp_path / "curves.svg").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*curves\.svg"):
        write_document(document(*EVERYTHING), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.svg"]  # no report that links what is not there


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "a/b", "a.svg"])
def test_a_figure_has_a_name_for_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a figure"):
        Figure(name, SVG, "", "")


def test_two_figures_have_two_names() -> None:
    with pytest.raises(ValueError, match="two figures are called 'Curves'"):
        document(Figure("curves", SVG, "", ""), Figure("Curves", SVG, "", ""))


def test_rows_fit_their_header() -> None:
    with pytest.raises(ValueError, match="3 cells under a header of 2"):
        Table(("a", "b"), (("1", "2"), ("1", "2", "3")))
    with pytest.raises(ValueError, match="needs a column"):
        Table((), ())
