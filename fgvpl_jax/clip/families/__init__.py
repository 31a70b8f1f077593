"""The families of checkpoints; each file describes one.

To add a family, write one file with a `Family` and add one line to `FAMILIES`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from fgvpl_jax.clip.downloads import check_small_file
from fgvpl_jax.clip.families.hugging_face_clip import HUGGING_FACE_CLIP
from fgvpl_jax.clip.families.metaclip_2 import METACLIP_2
from fgvpl_jax.clip.families.open_clip_resnet import OPEN_CLIP_RESNET
from fgvpl_jax.clip.families.open_clip_vit import OPEN_CLIP_VIT
from fgvpl_jax.clip.families.pe_core import PE_CORE
from fgvpl_jax.clip.families.siglip import SIGLIP
from fgvpl_jax.clip.family import Family
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

# A checkpoint that is published in several forms, or that several recognise, is read in the first.
FAMILIES = (HUGGING_FACE_CLIP, METACLIP_2, SIGLIP, PE_CORE, OPEN_CLIP_RESNET, OPEN_CLIP_VIT)

__all__ = ["FAMILIES", "all_small_files", "family_of"]


def all_small_files() -> list[str]:
    """Returns the names of the small files of all families."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.small_files))


def family_of(
    directory: Path, files: Collection[str] | None = None
) -> tuple[Family, dict[str, Any]]:
    """Returns the family of a checkpoint, by its own files, and the content of its config file.

    Args:
        directory: Folder that holds the config files.
        files: Names of the checkpoint's files, if some are not in the folder yet.
    Raises:
        UserError: If no family is recognised, or a config file is damaged.
    """
    names = {file.name for file in directory.iterdir()} if files is None else set(files)
    configs = {
        name: read_config_file(directory / name)
        for name in dict.fromkeys(family.config_file for family in FAMILIES)
        if (directory / name).is_file()
    }
    if not configs:
        raise UserError(
            f"{directory} has no config.json and no open_clip_config.json: name the folder of a "
            "Hugging Face or OpenCLIP checkpoint"
        )
    found = [
        family
        for family in FAMILIES
        if family.config_file in configs and family.matches(configs[family.config_file])
    ]
    if not found:
        name, config = next(iter(configs.items()))
        raise UserError(
            f"{directory / name} has model_type {config.get('model_type')!r}, which is not "
            f"supported: only {', '.join(family.name for family in FAMILIES)}"
        )
    present = [family for family in found if not names.isdisjoint(family.weight_formats)]
    # PyTorch's pickles come last. Without any weights, the first family is reported.
    without_pickle = (
        family
        for family in present
        if any(name in names and not name.endswith(".bin") for name in family.weight_formats)
    )
    family = next(without_pickle, present[0] if present else found[0])
    return family, configs[family.config_file]


def read_config_file(file: Path) -> dict[str, Any]:
    """Returns the content of a config file.

    Raises:
        UserError: If it is not a JSON object.
    """
    check_small_file(file)
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{file} holds a {kind}, not an object: download it again")
    return content
