"""A TFDS builder of FGVC-Aircraft, which TFDS lacks; importing this module registers it."""

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from fgvpl_jax.data.benchmarks import benchmark_named
from fgvpl_jax.data.images import MOST_BYTES, decode_image

HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
ARCHIVE = f"{HOMEPAGE}archives/fgvc-aircraft-2013b.tar.gz"
# Height in pixels of the strip at the bottom with the photographer's name, which users should
# remove according to the archive's README.
BANNER = 20

LISTS = {"train": "train", "validation": "val", "test": "test"}
CITATION = """@techreport{maji13fine-grained,
  title = {Fine-Grained Visual Classification of Aircraft},
  author = {S. Maji and J. Kannala and E. Rahtu and M. Blaschko and A. Vedaldi},
  year = {2013}, archivePrefix = {arXiv}, eprint = {1306.5151}
}"""


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """Builds 100 variants of aircraft in the authors' three splits, without the banner.

    Photos are stored as PNG, because cropping a JPEG would change all of its pixels. The archive
    is read without unpacking, so neither TensorFlow nor extra disk space is needed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "Release 2013b of the archive."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="FGVC-Aircraft 2013b: photos of 100 variants of aircraft.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "label": tfds.features.ClassLabel(
                        names=benchmark_named("fgvc_aircraft").class_names
                    ),
                    "file_name": tfds.features.Text(),  # such as 1025794.jpg
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # TFDS itself looks there only for archives whose checksums it has.
        manual = Path(dl_manager.download_dir, "manual", Path(ARCHIVE).name)
        archive = manual if manual.exists() else Path(dl_manager.download(ARCHIVE))
        variants = read_variants(archive)
        return {split: self._generate_examples(archive, variants[split]) for split in LISTS}

    def _generate_examples(
        self, archive: Path, variants: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with tarfile.open(archive, "r|*") as stream:
            for member in stream:
                path = PurePosixPath(member.name)
                if not member.isfile():
                    continue
                if path.parent.name != "images" or path.stem not in variants:
                    continue
                photo = decode_image(_content(stream, member), path.name)
                png = BytesIO()
                photo.crop((0, 0, photo.width, photo.height - BANNER)).save(png, format="PNG")
                png.seek(0)
                yield (
                    path.name,
                    {"image": png, "label": variants[path.stem], "file_name": path.name},
                )


def read_variants(archive: Path) -> dict[str, dict[str, str]]:
    """Reads, for each TFDS split, the variant of every image, such as "1025794": "707-320"."""
    files = {f"images_variant_{name}.txt": split for split, name in LISTS.items()}
    found: dict[str, dict[str, str]] = {}
    with tarfile.open(archive, "r|*") as stream:
        for member in stream:
            split = files.get(PurePosixPath(member.name).name)
            if split and member.isfile():
                lines = _content(stream, member).decode().splitlines()
                found[split] = dict(line.split(" ", 1) for line in lines if line.strip())
    missing = [name for name, split in files.items() if split not in found]
    if missing:
        raise ValueError(f"{archive} lacks {missing}: it is not the archive of {HOMEPAGE}")
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns a member's bytes; writes nothing to disk, so that its name can do no harm."""
    if member.size > MOST_BYTES:
        raise ValueError(f"{member.name!r} has {member.size:,} bytes, more than {MOST_BYTES:,}")
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
