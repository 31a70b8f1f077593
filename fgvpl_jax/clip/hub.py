"""Finds a checkpoint's files: in a local directory, or in a copy of a hub repository."""

import re
from pathlib import Path

from fgvpl_jax.clip.families import all_small_files, family_of
from fgvpl_jax.clip.weights import SHARD_INDEX
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user

README = "README.md"  # states the licence
LICENCES = "LICENSE*"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# The repository is listed first with this timeout, because `snapshot_download` waits forever on a
# network that drops packets.
TIMEOUT_SECONDS = 10


def find_checkpoint(path_or_hub_id: str) -> tuple[Path, str | None]:
    """Returns a directory with the checkpoint's files, and the hub revision it was resolved to.

    Args:
        path_or_hub_id: An existing directory, or `owner/name` on the Hugging Face hub. Copies in
            the hub's cache are used, also when the hub cannot be reached or `HF_HUB_OFFLINE=1` is
            set.
    Returns:
        The directory, and the revision; None for a local directory.
    Raises:
        UserError: If there is no such directory and the hub cannot supply it.
    """
    directory = expand_user(path_or_hub_id)
    if path_or_hub_id and directory.is_dir():
        return directory, None
    if directory.is_file() or not HUB_ID.fullmatch(path_or_hub_id):
        raise UserError(
            f"there is no directory {path_or_hub_id!r}: name a folder with a checkpoint, or a "
            "hub id such as openai/clip-vit-base-patch16"
        )
    return _fetch(path_or_hub_id)


def _fetch(hub_id: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi

    # `Exception` on purpose: no network, no such repository, no access, an impossible name and a
    # full disk each raise a different error, some of them the HTTP library's.
    try:
        siblings = HfApi().model_info(hub_id, timeout=TIMEOUT_SECONDS).siblings or []
    except Exception as error:
        directory = _cached(hub_id)
        if directory is None:
            raise _refusal(hub_id, error) from error
        return directory, directory.name
    files = {sibling.rfilename for sibling in siblings}
    directory = _download(hub_id, [*all_small_files(), README, LICENCES])
    family, _ = family_of(directory, files)
    # Only one format is fetched: the first whose first file the repository has.
    weights = next((name for name in family.weight_formats if name in files), None)
    if weights is None:
        raise UserError(
            f"{hub_id} on the hub holds no weights in a supported format; supported are "
            f"{', '.join(family.weight_formats)}"
        )
    shards = ["model-*.safetensors"] if weights == SHARD_INDEX else []
    directory = _download(hub_id, [weights, *shards])
    return directory, directory.name


def _download(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        raise _refusal(hub_id, error) from error


def _refusal(hub_id: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"there is no directory {hub_id}, and the Hugging Face hub cannot supply it ({reason}): "
        "check the name and the network, or pass the folder of a downloaded checkpoint"
    )


def _cached(hub_id: str) -> Path | None:
    """Returns the latest copy in the hub's cache, with any weights it has; uses no network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=["config.json"], local_files_only=True)
        )
    except (OSError, ValueError):  # no copy; ValueError if the name cannot be on the hub
        return None
