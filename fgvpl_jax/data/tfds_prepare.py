"""Prepares a benchmark with TFDS: `python -m fgvpl_jax.data.tfds_prepare food101 ~/tfds`."""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fgvpl_jax.data.benchmarks import benchmark_named
from fgvpl_jax.data.tfds_source import (
    FORMAT,
    INFO_FILE,
    find_prepared,
    open_prepared,
    prepare_command,
    prepared_folder,
)
from fgvpl_jax.errors import UserError

TIMEOUT = 10.0  # seconds


def prepare_tfds(name: str, data_dir: str) -> Path:
    """Downloads a benchmark and prepares it as `array_record`, unless it is already prepared.

    Archives in `downloads/manual` of the data folder, under their original names, are used instead
    of downloads.

    Args:
        name: Name of the benchmark in the table.
        data_dir: TFDS's data folder.
    Returns:
        The folder of the prepared benchmark.
    Raises:
        UserError: If TFDS does not have the photos of this benchmark, TensorFlow is missing, an
            archive's server cannot be reached, TFDS fails, or the benchmark is prepared in
            another format.
    """
    examples = benchmark_named(name).tfds
    if examples is None:
        raise UserError(f"TFDS has no photos of {name}: use CoOp's layout, see docs/datasets.md")
    place = Path(data_dir).expanduser()
    again = f"remove it and run `{prepare_command(name, place)}`"
    there = find_prepared(place, examples.name)
    version = examples.name.partition("/")[0].partition(":")[2]
    if there is not None and version in ("", there.name):
        open_prepared(there, again)
        return there
    if not examples.own_builder and find_spec("tensorflow") is None:
        raise UserError(
            f"TFDS needs TensorFlow to prepare {name} (reading it later does not): "
            "`pip install -c constraints.txt -e '.[tensorflow]'`, then run it again"
        )
    import tensorflow_datasets as tfds  # takes seconds

    # Importing the module registers its builder with TFDS.
    own = import_module(examples.own_builder) if examples.own_builder else None
    builder = tfds.builder(examples.name, data_dir=place, file_format=FORMAT)
    if builder.data_path.exists():  # TFDS would regard it as prepared
        raise UserError(f"{builder.data_path} exists, but lacks {INFO_FILE}: {again}")
    downloads = place / "downloads"
    if own is not None:
        archives = {own.ARCHIVE: Path(own.ARCHIVE).name}
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # TFDS itself reports what is missing
        archives = {}
    else:
        archives = {url: info.filename for url, info in builder.url_infos.items()}
    needed = {u: file for u, file in archives.items() if file not in examples.other_archives}
    _check_reachable(needed, downloads)
    try:
        builder.download_and_prepare(download_dir=downloads)
    except Exception as error:  # TFDS, the network and the disk raise many types
        raise UserError(
            f"TFDS could not prepare {name} in {place} ({type(error).__name__}: {error}): fix "
            "this and run it again; downloads are kept, and an archive from elsewhere is used if "
            f"you put it into {downloads / 'manual'}"
        ) from error
    return prepared_folder(place, name, examples.name)


def _check_reachable(archives: Mapping[str, str], downloads: Path) -> None:
    """Raises immediately if a server is unreachable; TFDS would retry for minutes.

    Args:
        archives: Maps the URL of each archive to its file name.
        downloads: Folder in which TFDS keeps the archives.
    """
    # TFDS writes a JSON file with this suffix next to each archive that it has downloaded.
    records = [i.read_text() for i in downloads.rglob("*.INFO") if i.with_suffix("").exists()]
    manual = downloads / "manual"
    for url, file in archives.items():
        if (manual / file).exists() or any(json.dumps(url) in record for record in records):
            continue
        try:
            urlopen(Request(url, method="HEAD"), timeout=TIMEOUT).close()
        except HTTPError:
            continue  # the server answers; whether it supports HEAD does not matter
        except OSError as error:
            raise UserError(
                f"{url} cannot be reached ({error}): put the archive into {manual} as {file}, or "
                "prepare the benchmark on a machine with a network and copy the data folder here"
            ) from error


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m fgvpl_jax.data.tfds_prepare BENCHMARK DATA_DIR", file=sys.stderr)
        return 2
    try:
        print("prepared:", prepare_tfds(*arguments))
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
