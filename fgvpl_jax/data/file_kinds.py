"""Recognises what a file is by its first bytes, whatever its name says."""

import re
from enum import Enum
from typing import NamedTuple

HEAD_BYTES = 512  # bytes of a file that `kind_of` needs


class Group(Enum):
    """Kinds of files that are treated alike."""

    PHOTO = "a photo in a format that is read"
    FOREIGN = "a picture in a format that is not read"
    POINTER = "a small file that stands for one stored elsewhere"
    ARCHIVE = "an archive"
    OTHER = "no picture"


class Kind(NamedTuple):
    """Kind of a file, by its content.

    Attributes:
        group: Group of the kind.
        name: Noun phrase for messages, such as "a HEIC photo".
        advice: What the user can do about the file; empty for photos that are read.
    """

    group: Group
    name: str
    advice: str = ""


CONVERT = "convert it to JPEG"
RAW = Kind(Group.FOREIGN, "a camera's raw photo", CONVERT)
HEIC = Kind(Group.FOREIGN, "a HEIC photo", CONVERT)
VIDEO = Kind(Group.OTHER, "a video", "save its pictures as JPEG")
TIFF = Kind(Group.PHOTO, "a TIFF photo")
# The first pattern that matches at the start of the file decides.
SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"\xff\xd8\xff", Kind(Group.PHOTO, "a JPEG photo")),
        (rb"\x89PNG\r\n\x1a\n", Kind(Group.PHOTO, "a PNG picture")),
        (rb"GIF8[79]a", Kind(Group.PHOTO, "a GIF picture")),
        (rb"RIFF....WEBP", Kind(Group.PHOTO, "a WebP photo")),
        # Two letters alone could begin a text; the size of the header follows at byte 14.
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", Kind(Group.PHOTO, "a BMP picture")),
        (rb"P[1-6][\s#]", Kind(Group.PHOTO, "a PPM picture")),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", Kind(Group.PHOTO, "a JPEG 2000 photo")),
        (rb"II\*\0....CR|II\x1a\0\0\0HEAPCCDR|IIR[OS]|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb", RAW),
        (rb"II[*+]\0|MM\0[*+]", TIFF),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", Kind(Group.FOREIGN, "a JPEG XL photo", CONVERT)),
        (rb"8BPS", Kind(Group.FOREIGN, "a Photoshop file", CONVERT)),
        (rb"\x00\x00\x01\x00[^\x00]\x00", Kind(Group.FOREIGN, "an icon", CONVERT)),
        (rb"DDS \x7c\0\0\0", Kind(Group.FOREIGN, "a DDS texture", CONVERT)),
        (rb"v/1\x01", Kind(Group.FOREIGN, "an OpenEXR picture", CONVERT)),
        (rb"#\?RADIANCE", Kind(Group.FOREIGN, "a Radiance picture", CONVERT)),
        (rb"%!PS|\xc5\xd0\xd3\xc6", Kind(Group.FOREIGN, "a PostScript file", CONVERT)),
        (rb"%PDF-", Kind(Group.FOREIGN, "a PDF document", "save its pictures as JPEG")),
        (
            rb"version https://git-lfs\.github\.com/",
            Kind(Group.POINTER, "a git-lfs pointer", "fetch the file with `git lfs pull`"),
        ),
        (
            rb"/annex/objects/",
            Kind(Group.POINTER, "a git-annex pointer", "fetch the file with `git annex get`"),
        ),
        (
            rb"outs:\s*\n\s*- (md5|etag|hash)",
            Kind(Group.POINTER, "a DVC pointer", "fetch the file with `dvc pull`"),
        ),
        (
            rb"PK\x03\x04|Rar!\x1a|7z\xbc\xaf\x27\x1c|\x1f\x8b|BZh|\xfd7zXZ",
            Kind(Group.ARCHIVE, "an archive", "unpack it"),
        ),
        (rb".{257}ustar", Kind(Group.ARCHIVE, "an archive", "unpack it")),
        (rb"\x1aE\xdf\xa3|RIFF....AVI ", VIDEO),
        (rb"\x00\x05\x16\x07", Kind(Group.OTHER, "a resource fork of macOS", "remove it")),
        (
            rb"(?i)\s*(<!--.*?-->\s*)?(<!doctype html|<html|<head)",
            Kind(Group.OTHER, "a web page, perhaps of a failed download", "fetch the file again"),
        ),
        (
            rb"(?i)\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)?(<!doctype svg.*?>\s*)?<svg",
            Kind(Group.FOREIGN, "an SVG drawing", CONVERT),
        ),
    )
)
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"mif1", b"msf1", b"mif2"}


def kind_of(head: bytes) -> Kind | None:
    """Returns the kind of a file.

    Args:
        head: The first `HEAD_BYTES` bytes of the file, or all of it if it is shorter.
    Returns:
        The kind; None if the bytes are not known.
    """
    head = head.removeprefix(b"\xef\xbb\xbf")[:HEAD_BYTES]
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    return next((kind for pattern, kind in SIGNATURES if pattern.match(head)), None)


def _kind_of_brands(head: bytes) -> Kind:
    """Returns the kind of a file in the container that AVIF, HEIC and videos share."""
    end = min(int.from_bytes(head[:4]), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    if brands & AVIF_BRANDS:
        return Kind(Group.PHOTO, "an AVIF photo")
    if brands & HEIC_BRANDS:
        return HEIC
    if b"crx " in brands:
        return RAW
    return Kind(Group.FOREIGN, "a HEIF photo", CONVERT) if brands & HEIF_BRANDS else VIDEO
