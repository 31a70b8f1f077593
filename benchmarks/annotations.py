"""Reads where the objects of photos are: boxes (Pascal VOC XML, COCO JSON) or masks (PNG)."""

import json
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageOps

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data.folder import image_files
from fgvpl_jax.errors import UserError

ORIENTATION = 0x0112  # EXIF tag
WINDOWS, WINDOW_SIDES, WINDOW_COVERAGE = 300, (0.45, 1.0), 0.3  # see `off_centre_window`
VOID = 255  # index of pixels of no class in Pascal VOC's palette masks

Box = tuple[float, float, float, float]


class Annotation(NamedTuple):
    """Objects of one photo.

    Attributes:
        size: Width and height of the photo that the boxes or the mask were drawn on; None if the
            file does not say.
        boxes: Edges (left, top, right, bottom) in pixels; the first pixel spans 0 to 1.
        mask: Pixels of the objects; None for boxes.
    """

    size: tuple[int, int] | None
    boxes: tuple[Box, ...] = ()
    mask: Bool[np.ndarray, "H W"] | None = None


class Annotations:
    """Annotations of a set of photos, found by the photos' paths.

    Args:
        place: A COCO JSON file, or a folder of Pascal VOC XML files or PNG masks. A file of the
            folder has the path of its photo, with another suffix.
    Raises:
        UserError: If there is no such file or folder, or it holds no annotation.
    """

    def __init__(self, place: Path):
        self._coco = _read_coco(place) if place.is_file() else {}
        # Where there are XML files, PNG files next to them are photos.
        files = _files(place, ".xml") or _files(place, ".png")
        self._files = {_key(file.relative_to(place)): file for file in files}
        if not self._coco and not self._files:
            raise UserError(
                f"{place} holds no annotations: give a folder of Pascal VOC XML files or PNG "
                "masks, or a COCO JSON file"
            )

    def of(self, photo: Path) -> Annotation:
        """Returns the objects of a photo.

        Args:
            photo: Path of the photo, relative to the folder of all photos.
        Raises:
            UserError: If there is no annotation, it holds no object, or it is damaged.
        """
        key = _key(photo)
        if key in self._coco:
            return self._coco[key]
        file = self._files.get(key)
        if file is None:
            raise UserError("no annotation")
        try:
            found = _read_mask(file) if file.suffix.lower() == ".png" else _read_voc(file)
        except Exception as error:  # a damaged file may raise any error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"damaged annotation {file.name}: {reason}") from error
        if found.mask is None and not found.boxes:
            raise UserError("no annotation: the file has no box")
        return found


class Painted(NamedTuple):
    """Objects of one photo as a picture.

    Attributes:
        picture: White objects on black, as large and as upright as the photo.
        rescaled: Whether the annotation was drawn on a photo of another size.
    """

    picture: Image.Image
    rescaled: bool


def paint(photo: Image.Image, file: Path, annotation: Annotation) -> Painted:
    """Paints the objects of a photo; several objects are joined.

    An annotation of the size that the file has before its EXIF rotation is rotated like the photo.
    An annotation of any other size is scaled to the photo's.

    Args:
        photo: The upright photo.
        file: The photo's file, for its EXIF orientation.
        annotation: Boxes or mask.
    """
    with Image.open(file) as stored:
        stored_size, orientation = stored.size, stored.getexif().get(ORIENTATION, 1)
    as_stored = annotation.size == stored_size != photo.size
    size = stored_size if as_stored else photo.size
    painted = _paint(annotation, size)
    if as_stored:
        painted.getexif()[ORIENTATION] = orientation
        painted = ImageOps.exif_transpose(painted)
    return Painted(painted, annotation.size not in (None, size))


def truth_in_crop(clip: CLIP, painted: Image.Image) -> Bool[np.ndarray, "H W"]:
    """Returns the objects' pixels in the crop that the model sees.

    The painted objects pass through the model's own resize and crop; a pixel belongs to an object
    if at least half of it does.
    """
    return clip.resize_and_crop(painted.convert("RGB"))[..., 0] > 127


def off_centre_window(
    painted: Image.Image, rng: np.random.Generator
) -> tuple[float, float, float, float] | None:
    """Returns a square window (left, top, right, bottom) of which objects cover about 30%.

    The window is the best of 300 at random places, so its objects are usually near an edge, where a
    map that only prefers the centre misses them. None if no window has 15% to 45%.
    """
    covered = np.asarray(painted) > 127
    total = np.pad(covered.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best, window = np.inf, None
    for _ in range(WINDOWS):
        side = int(rng.uniform(*WINDOW_SIDES) * min(covered.shape))
        top, left = (int(rng.integers(length - side + 1)) for length in covered.shape)
        bottom, right = top + side, left + side
        area = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
        miss = abs(area / side**2 - WINDOW_COVERAGE)
        if miss < best:
            best, window = miss, (left, top, right, bottom)
    return window if best <= WINDOW_COVERAGE / 2 else None


def _paint(annotation: Annotation, size: tuple[int, int]) -> Image.Image:
    if annotation.mask is not None:
        mask = Image.fromarray(np.where(annotation.mask, 255, 0).astype(np.uint8))
        return mask.resize(size, Image.Resampling.NEAREST)
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    scales = [real / said for real, said in zip(size, annotation.size or size, strict=True)] * 2
    for box in annotation.boxes:
        left, top, right, bottom = (round(e * s) for e, s in zip(box, scales, strict=True))
        if left < right and top < bottom:
            pen.rectangle((left, top, right - 1, bottom - 1), fill=255)  # the ends are included
    return canvas


def _key(photo: Path) -> str:
    return photo.with_suffix("").as_posix()


def _files(folder: Path, suffix: str) -> list[Path]:
    return image_files(folder, {suffix}) if folder.is_dir() else []


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    if not np.isfinite([left, top, right, bottom]).all():
        raise ValueError("a box has an edge that is not a number")
    return left, top, right, bottom


def _read_voc(file: Path) -> Annotation:
    root = ElementTree.parse(file).getroot()
    boxes = []
    for node in root.iterfind("object/bndbox"):
        left, top, right, bottom = (
            float(node.findtext(edge, "")) for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        # VOC counts pixels from 1, and a box includes its last pixel.
        boxes.append(_box(left - 1, top - 1, right, bottom))
    size = int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0"))
    return Annotation(size if min(size) > 0 else None, tuple(boxes))


def _read_mask(file: Path) -> Annotation:
    with Image.open(file) as image:
        palette = image.mode == "P"
        transparent = image.mode in ("LA", "PA", "RGBA")
        values = np.asarray(image.convert("RGB") if transparent else image)
    if values.ndim == 3:
        values = values.max(axis=2)
    mask = (values != 0) & ~(palette & (values == VOID))
    return Annotation((mask.shape[1], mask.shape[0]), mask=mask)


def _read_coco(file: Path) -> dict[str, Annotation]:
    try:
        content: Any = json.loads(file.read_text())
        images = {image["id"]: image for image in content["images"]}
        boxes: dict[Any, list[Box]] = {number: [] for number in images}
        for one in content["annotations"]:
            left, top, width, height = map(float, one["bbox"])
            boxes[one["image_id"]].append(_box(left, top, left + width, top + height))
        return {
            _key(Path(image["file_name"])): Annotation(
                (image["width"], image["height"]) if image.get("width") else None,
                tuple(boxes[number]),
            )
            for number, image in images.items()
            if boxes[number]
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{file} is not a COCO JSON file with images, annotations and boxes: {error!r}"
        ) from error
