"""Prepares a benchmark by TFDS, once: `python -m fgvpl_jax.data.tfds_prepare food101 ~/tfds`."""

import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from fgvpl_jax.data.benchmarks import benchmark_named
from fgvpl_jax.data.tfds_source import prepared_folder
from fgvpl_jax.errors import UserError

TIMEOUT = 10.0  # seconds


def prepare_tfds(name: str, data_dir: str) -> Path:
    """Downloads and prepares a benchmark as `array_record`; one that is there stays as it is.

    Args:
        name: As the table calls it.
        data_dir: TFDS's data folder.
    Returns:
        Where it lies now.
    Raises:
        UserError: If TFDS has no photos of it, TensorFlow is missing, the archive's server cannot
            be reached, or TFDS fails.
    """
    benchmark = benchmark_named(name)
    if benchmark.tfds is None:
        raise UserError(f"TFDS has no photos of {name}: see docs/datasets.md for CoOp's layout")
    # The project's own builder unpacks by itself; TFDS unpacks archives with TensorFlow.
    own = name == "fgvc_aircraft"
    if not own and find_spec("tensorflow") is None:
        raise UserError(
            f"TFDS needs TensorFlow to prepare {name} (reading it later does not): "
            "`pip install -c constraints.txt -e '.[tensorflow]'`, then again"
        )
    import tensorflow_datasets as tfds  # seconds

    from fgvpl_jax.data import fgvc_aircraft  # makes its builder known to TFDS

    place = Path(data_dir).expanduser()
    builder = tfds.builder(benchmark.tfds.name, data_dir=place, file_format="array_record")
    if not builder.data_path.exists() and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        url = fgvc_aircraft.ARCHIVE if own else next(iter(builder.url_infos))
        _check_reachable(url, place / "downloads")
    try:
        builder.download_and_prepare(download_dir=place / "downloads")
    except Exception as error:  # TFDS, the network and the disk have a hundred kinds
        raise UserError(
            f"TFDS could not prepare {name} in {place} ({type(error).__name__}: {error}): mend "
            "this and run it again; what is downloaded is kept"
        ) from error
    return prepared_folder(place, name, benchmark.tfds.name)


def _check_reachable(url: str, downloads: Path) -> None:
    """Fails at once where TFDS would try again for minutes."""
    if any(url in info.read_text() for info in downloads.rglob("*.INFO")):
        return  # downloaded before
    try:
        urlopen(Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return  # a server that answers; what it thinks of HEAD does not matter
    except OSError as error:
        raise UserError(
            f"{urlsplit(url).netloc} cannot be reached ({error}): prepare where there is a "
            "network and copy the folder here"
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
