"""A report as sections of tables and pictures, written as Markdown or as one HTML file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from fgvpl_jax.reports.tables import Table

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Picture:
    """A file beside the report.

    Attributes:
        file: Its path below the report's folder.
        caption: What it shows; also for who cannot see it.
    """

    file: str
    caption: str


@dataclass
class Section:
    """One part of a report.

    Attributes:
        title: Its heading.
        lines: Paragraphs.
        tables: In order.
        pictures: Below the tables.
        is_folded: Whether a reader of the HTML opens it first.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    is_folded: bool = False


def write_markdown(title: str, sections: Sequence[Section], file: Path) -> None:
    """Writes the report as Markdown that names its pictures."""
    blocks = [f"# {_escaped(title)}"]
    for section in sections:
        blocks.append(f"## {_escaped(section.title)}")
        blocks += [_escaped(line) for line in section.lines]
        for table in section.tables:
            if table.title != section.title:
                blocks.append(f"### {_escaped(table.title)}")
            rows = [table.columns, ["---"] * len(table.columns), *table.rows]
            blocks.append("\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows))
            blocks += [_escaped(note) for note in table.notes]
        blocks += [f"![{_escaped(p.caption)}]({quote(p.file)})" for p in section.pictures]
    file.write_text("\n\n".join(blocks) + "\n", encoding="utf-8", errors="backslashreplace")


def write_html(title: str, sections: Sequence[Section], folder: Path, name: str) -> None:
    """Writes the report as one HTML file that holds its pictures and asks for nothing else.

    Args:
        title: Of the page.
        sections: Whatever names are in them, the page shows them as text.
        folder: Where the pictures lie and the file is written.
        name: Of the file.
    """
    environment = Environment(
        loader=PackageLoader("fgvpl_jax.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def data_uri(picture: Picture) -> str:
        file = folder / picture.file
        content = base64.b64encode(file.read_bytes()).decode("ascii")
        return f"data:{MEDIA_TYPES[file.suffix]};base64,{content}"

    page = environment.get_template("report.html.j2").render(
        title=title, sections=sections, data_uri=data_uri
    )
    (folder / name).write_text(page, encoding="utf-8", errors="backslashreplace")


def _escaped(text: str) -> str:
    """Text that Markdown, also with HTML in it, shows as it is."""
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(letter, entity)
    for letter in "\\`*_[]|":
        text = text.replace(letter, "\\" + letter)
    return " ".join(text.split())
