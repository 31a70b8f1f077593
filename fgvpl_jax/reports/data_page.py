"""The page of `--mode=data`: thumbnails of photos to look at, sorted, each with the reason."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.displays.contact_sheet import SIDE, thumbnail
from fgvpl_jax.displays.overlay import PAPER, write
from fgvpl_jax.files import read_json
from fgvpl_jax.reports.csv_files import CsvFile
from fgvpl_jax.reports.document import Picture, Section, write_document
from fgvpl_jax.reports.tables import Table
from fgvpl_jax.runs.data_look import LOOK, DataLook, Suspect

FOLDER = "data"
MOST_SHOWN = 60  # photos or groups of each kind; the CSV files have all
MOST_PAIRS = 20
COLUMNS = 3
CELL_WIDTH, GAP = 380, 8  # pixels


def write_data_page(look: DataLook, folder: Path) -> Path:
    """Writes `report.html`, `report.md`, CSV files and thumbnails; returns the page.

    Args:
        look: What was found.
        folder: Folder for the files; created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        suspects_section(
            "Probably mislabelled",
            "mislabelled",
            "A quick classifier (GDA on CLIP's frozen features) that did not see the photo prefers "
            f"another class. It finds the given class of {look.accuracy:.1%} of the photos: the "
            "lower this is, the more of the photos below are right and only hard.",
            look,
            look.mislabelled,
        ),
        suspects_section(
            "Copies in several classes or splits",
            "copies",
            "Copies of one photo, also resized or compressed. One of two classes is wrong; copies "
            "in two splits make the accuracy too high.",
            look,
            [one for group in look.copies for one in group],
        ),
        suspects_section(
            "Outliers",
            "outliers",
            "Photos that are far from the means of all classes.",
            look,
            look.outliers,
        ),
        confused_section(look),
    ]
    write_document("A look at the data", sections, folder)
    return folder / "report.html"


def look_sections(folders: Sequence[Path]) -> list[Section]:
    """Returns a section that names the pages below some folders; empty without any."""
    lines = []
    for file in sorted({file for folder in folders for file in folder.rglob(LOOK)}):
        look = read_json(file)
        lines.append(
            f"{len(look['mislabelled'])} photos are probably mislabelled, {len(look['copies'])} "
            f"groups of copies are in several classes or splits, {len(look['outliers'])} photos "
            f"are outliers: see {file.parent / FOLDER / 'report.html'}"
        )
    return [Section("A look at the data", lines)] if lines else []


def suspects_section(
    title: str, name: str, explanation: str, look: DataLook, suspects: Sequence[Suspect]
) -> Section:
    """Returns a section with thumbnails of suspects, and a CSV file of all of them."""
    section = Section(title, lines=[explanation if suspects else "No photos were found."])
    rows = [[one.key, one.label, one.reason] for one in suspects]
    section.csv_files.append(CsvFile(f"{name}.csv", ("photo", "class", "reason"), rows))
    if suspects:
        shown = suspects[:MOST_SHOWN]
        more = f"; the first {len(shown)} of {len(suspects)}" if len(shown) < len(suspects) else ""
        section.lines.append(f"{len(suspects)} photos{more}; {name}.csv lists all.")
        caption = f"{title}: path, class and reason next to each photo, in the order of {name}.csv."
        section.pictures.append(Picture(f"{name}.jpg", caption, sheet_of(look, shown)))
        section.tables.append(Table(title, ["photo", "class", "reason"], rows[:MOST_SHOWN]))
    return section


def confused_section(look: DataLook) -> Section:
    """Returns a section with the classes that are confused most often."""
    rows = [[given, predicted, str(count)] for given, predicted, count in look.confused]
    columns = ["given class", "predicted class", "photos"]
    section = Section("Classes that are confused")
    section.csv_files.append(CsvFile("confused.csv", columns, rows))
    if rows:
        section.tables.append(Table(section.title, columns, rows[:MOST_PAIRS]))
    else:
        section.lines.append("No classes are confused.")
    return section


def sheet_of(look: DataLook, suspects: Sequence[Suspect]) -> Image.Image:
    """Draws each photo with its path, class and reason, row by row."""
    columns = min(COLUMNS, len(suspects))
    rows = math.ceil(len(suspects) / columns)
    height = SIDE + GAP
    sheet = Image.new("RGB", (columns * CELL_WIDTH + GAP, rows * height + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, suspect in enumerate(suspects):
        left, top = number % columns * CELL_WIDTH + GAP, number // columns * height + GAP
        try:
            photo = thumbnail(look.splits[suspect.split].image(suspect.place))
        except UnreadableImage:  # removed since
            photo = Image.new("RGB", (SIDE, SIDE), "white")
        sheet.paste(photo, (left, top))
        for line, text in enumerate((suspect.key, suspect.label, suspect.reason)):
            place = (left + SIDE + GAP, top + 4 + 22 * line)
            write(pen, place, text, CELL_WIDTH - SIDE - 3 * GAP, 12)
    return sheet
