"""Where a checkpoint lies: a local directory, or a copy of a hub repository."""

import re
from pathlib import Path

from fgvpl_jax.clip.weights import MSGPACK, PYTORCH, SAFETENSORS, SHARD_INDEX
from fgvpl_jax.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
SMALL_FILES = ["*.json", "*.txt"]
# One format is enough; the first that a repository has is fetched, and no other.
FORMATS = ([SAFETENSORS, SHARD_INDEX, "model-*.safetensors"], [MSGPACK], [PYTORCH])


def find_checkpoint(path_or_hub_id: str) -> tuple[Path, str | None]:
    """A directory with the checkpoint's files, and the hub revision it was resolved to.

    Args:
        path_or_hub_id: An existing directory, or `owner/name` on the Hugging Face hub. The hub's
            own cache is used, and `HF_HUB_OFFLINE=1` is honoured.
    Raises:
        UserError: If there is no such directory and the hub cannot supply it.
    """
    directory = Path(path_or_hub_id).expanduser()
    if directory.is_dir():
        return directory, None
    if not HUB_ID.fullmatch(path_or_hub_id):
        raise UserError(
            f"there is no directory {path_or_hub_id}: name a folder with a Hugging Face CLIP, "
            "or a hub id such as openai/clip-vit-base-patch16"
        )
    return _fetch(path_or_hub_id)


def _fetch(hub_id: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    for weights in FORMATS:
        try:
            directory = Path(snapshot_download(hub_id, allow_patterns=[*SMALL_FILES, *weights]))
        except OSError as error:  # no network, no such repository, no cached copy, no access
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"there is no directory {hub_id}, and the Hugging Face hub gives none ({reason}): "
                "check the name and the network, or pass the folder of a downloaded checkpoint"
            ) from error
        if any((directory / name).is_file() for name in weights):
            return directory, directory.name
    raise UserError(f"{hub_id} on the hub holds no CLIP weights: none of {SAFETENSORS}, {MSGPACK}")
