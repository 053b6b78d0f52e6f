"""A page of sections that is written as Markdown and as one HTML file that needs no other."""

import base64
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from sumlib.base.files import write_text
from sumlib.report.text import markdown_table

PAGE = Path(__file__).with_name("page.html")
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
SMALL = 128
"""Pictures up to this many pixels wide are shown with their pixels, larger."""


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` and **bold** as in Markdown."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of short sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts below a header; the columns ``text`` stand to the left."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (0,)
    strong: Sequence[int] = ()
    """Rows that are set in bold."""


@dataclass(frozen=True)
class Picture:
    """A file (PNG or JPEG) with what it shows, for those who cannot see it, and a caption."""

    path: Path
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, under one caption; on a narrow screen they wrap."""

    pictures: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """A snippet."""

    text: str
    language: str = "python"
    title: str = ""


Block = Text | Points | Table | Picture | Pictures | Code


@dataclass(frozen=True)
class Section:
    """A title and what stands below it; a folded one is opened by a click."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """A page."""

    title: str
    lead: Sequence[str]
    """The sentences that stand first and larger."""
    sections: Sequence[Section] = field(default=())
    note: str = ""
    """The last line."""


# ---- Markdown -----------------------------------------------------------------------------------


def write_markdown(document: Document, path: Path) -> Path:
    """Write the page as Markdown; pictures are linked relative to the file."""
    lines = [f"# {document.title}", *document.lead]
    for section in document.sections:
        lines += [f"## {section.title}", *(_markdown(block, path.parent) for block in section.blocks)]
    lines += [document.note] if document.note else []
    write_text(path, "\n\n".join(lines) + "\n")
    return path


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Text(text):
            return text
        case Points(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(header, rows, text, strong):
            cells = [[_cell(cell, k in strong) for cell in row] for k, row in enumerate(rows)]
            return markdown_table(header, cells, text)
        case Picture(path, alt, caption):
            link = f"![{alt}]({_link(path, folder)})"
            return f"{link}\n\n*{caption}*" if caption else link
        case Pictures(pictures, caption):
            titles = [picture.caption for picture in pictures]
            cells = [f"![{picture.alt}]({_link(picture.path, folder)})" for picture in pictures]
            table = markdown_table(titles, [cells], range(len(titles)))
            return f"{table}\n\n*{caption}*" if caption else table
        case Code(text, language, title):
            fence = f"```{language}\n{text}\n```"
            return f"**{title}**\n\n{fence}" if title else fence
    raise TypeError(f"no block of a page: {block!r}")


def _cell(text: str, strong: bool) -> str:
    safe = text.replace("|", "\\|").replace("\n", " ")
    return f"**{safe}**" if strong and safe else safe


def _link(path: Path, folder: Path) -> str:
    """The path as a link from a page in ``folder``, from where it can be moved along."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


# ---- HTML ---------------------------------------------------------------------------------------


def write_html(document: Document, path: Path) -> Path:
    """Write the page as one HTML file with its pictures inside: no other file, no script, no net."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"inline": inline, "data": data_uri, "kind": lambda b: type(b).__name__}
    environment.filters["pixels"] = lambda picture: _width(picture.path) <= SMALL
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    write_text(path, page.render(document=document))
    return path


def inline(text: str) -> str:
    """Markdown inside a line as HTML: `code`, **bold**, and nothing else.

    >>> print(inline("**a** < `b`"))
    <strong>a</strong> &lt; <code>b</code>
    """
    safe = html.escape(text, quote=False)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe))


def data_uri(path: Path) -> str:
    """The file's content as a data URI. Raises ValueError for a kind that is no picture."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"{path}: is no picture for a page; use {', '.join(KINDS)}")
    return f"data:{KINDS[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width
