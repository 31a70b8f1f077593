"""Prepares a benchmark by TFDS, once: `python -m fgvpl_jax.data.tfds_prepare food101 ~/tfds`."""

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
    """Downloads and prepares a benchmark as `array_record`; one that is there stays as it is.

    Archives at hand are taken from `downloads/manual` of the data folder, under their own names.

    Args:
        name: As the table calls it.
        data_dir: TFDS's data folder.
    Returns:
        Where it lies now.
    Raises:
        UserError: If TFDS has no photos of it, TensorFlow is missing, an archive's server cannot
            be reached, TFDS fails, or what is there is in another format.
    """
    examples = benchmark_named(name).tfds
    if examples is None:
        raise UserError(f"TFDS has no photos of {name}: see docs/datasets.md for CoOp's layout")
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
            "`pip install -c constraints.txt -e '.[tensorflow]'`, then again"
        )
    import tensorflow_datasets as tfds  # seconds

    # Importing it makes its builder known to TFDS.
    own = import_module(examples.own_builder) if examples.own_builder else None
    builder = tfds.builder(examples.name, data_dir=place, file_format=FORMAT)
    if builder.data_path.exists():  # which TFDS would take for a prepared one
        raise UserError(f"{builder.data_path} is there, but lacks {INFO_FILE}: {again}")
    downloads = place / "downloads"
    if own is not None:
        archives = {own.ARCHIVE: Path(own.ARCHIVE).name}
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # TFDS says by itself what is missing
        archives = {}
    else:
        archives = {url: info.filename for url, info in builder.url_infos.items()}
    needed = {u: file for u, file in archives.items() if file not in examples.other_archives}
    _check_reachable(needed, downloads)
    try:
        builder.download_and_prepare(download_dir=downloads)
    except Exception as error:  # TFDS, the network and the disk have a hundred kinds
        raise UserError(
            f"TFDS could not prepare {name} in {place} ({type(error).__name__}: {error}): mend "
            "this and run it again; what is downloaded is kept, and an archive from elsewhere is "
            f"taken from {downloads / 'manual'}"
        ) from error
    return prepared_folder(place, name, examples.name)


def _check_reachable(archives: Mapping[str, str], downloads: Path) -> None:
    """Fails at once where TFDS would try again for minutes.

    Args:
        archives: URL to file name.
        downloads: Where TFDS keeps them.
    """
    # TFDS writes such a file of JSON beside each archive that it has.
    records = [i.read_text() for i in downloads.rglob("*.INFO") if i.with_suffix("").exists()]
    manual = downloads / "manual"
    for url, file in archives.items():
        if (manual / file).exists() or any(json.dumps(url) in record for record in records):
            continue
        try:
            urlopen(Request(url, method="HEAD"), timeout=TIMEOUT).close()
        except HTTPError:
            continue  # a server that answers; what it thinks of HEAD does not matter
        except OSError as error:
            raise UserError(
                f"{url} cannot be reached ({error}): put the archive into {manual} as {file}, or "
                "prepare where there is a network and copy the data folder here"
            ) from error


def main(arguments: list[str]) -> int:
    """Prepares what the command line names; returns the exit code."""
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
