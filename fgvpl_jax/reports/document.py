"""A report as sections of tables and pictures, written as Markdown, as one HTML file and as CSV."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from fgvpl_jax.displays.figures import save_figure
from fgvpl_jax.reports.csv_files import CsvFile, write_csv
from fgvpl_jax.reports.tables import Table

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        file: Name of its file in the report's folder; `.svg` for a figure, which is also written
            as `.png`.
        caption: What it shows; also read by screen readers.
        content: The figure or photo itself.
    """

    file: str
    caption: str
    content: Figure | Image.Image


@dataclass
class Section:
    """One part of a report.

    Attributes:
        title: Heading of the section.
        lines: Paragraphs at its top.
        tables: Tables, in order.
        pictures: Pictures below the tables.
        csv_files: CSV files with the section's numbers.
        is_folded: Whether the HTML page shows only the heading until it is clicked.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    csv_files: list[CsvFile] = field(default_factory=list)
    is_folded: bool = False


def figure_picture(figure: Figure, stem: str, caption: str) -> Picture:
    """Returns a figure as a picture of the report."""
    return Picture(f"{stem}.svg", caption, figure)


def write_document(title: str, sections: Sequence[Section], folder: Path) -> None:
    """Writes `report.html`, `report.md`, and the sections' pictures and CSV files.

    Args:
        title: Title of the report.
        sections: Sections of the report; names in them appear as plain text on the page.
        folder: Existing folder for the files.
    """
    for section in sections:
        for csv_file in section.csv_files:
            write_csv(folder / csv_file.name, csv_file.columns, csv_file.rows)
        for picture in section.pictures:
            if isinstance(picture.content, Figure):
                save_figure(picture.content, folder / picture.file)
            else:
                picture.content.save(folder / picture.file, quality=JPEG_QUALITY)
    write_markdown(title, sections, folder / "report.md")
    write_html(title, sections, folder / "report.html")


def write_markdown(title: str, sections: Sequence[Section], file: Path) -> None:
    """Writes the report as Markdown that links to its pictures."""
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


def write_html(title: str, sections: Sequence[Section], file: Path) -> None:
    """Writes the report as one HTML file that contains its pictures and loads nothing else.

    Args:
        title: Title of the page.
        sections: Sections of the report; names in them appear as plain text on the page.
        file: File to write, in the folder that holds the pictures.
    """
    environment = Environment(
        loader=PackageLoader("fgvpl_jax.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def data_uri(picture: Picture) -> str:
        source = file.parent / picture.file
        content = base64.b64encode(source.read_bytes()).decode("ascii")
        return f"data:{MEDIA_TYPES[source.suffix]};base64,{content}"

    page = environment.get_template("report.html.j2").render(
        title=title, sections=sections, data_uri=data_uri
    )
    file.write_text(page, encoding="utf-8", errors="backslashreplace")


def _escaped(text: str) -> str:
    """Returns text that Markdown, including HTML in Markdown, shows unchanged."""
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(letter, entity)
    for letter in "\\`*_[]|":
        text = text.replace(letter, "\\" + letter)
    return " ".join(text.split())
