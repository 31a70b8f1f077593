"""Export of an adapted CLIP as a checkpoint that transformers loads, and its upload to the hub."""

import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fgvpl_jax.clip import VisionTower
from fgvpl_jax.clip.convert import LOGIT_SCALE, published_tensors
from fgvpl_jax.clip.families import family_of, read_config_file
from fgvpl_jax.clip.families.hugging_face_clip import HUGGING_FACE_CLIP
from fgvpl_jax.clip.families.metaclip_2 import METACLIP_2
from fgvpl_jax.clip.families.transformers_files import TEXT_NAMES, VISION_NAMES
from fgvpl_jax.clip.hub import HUB_ID, LICENCES, find_checkpoint
from fgvpl_jax.clip.load import small_files
from fgvpl_jax.clip.weights import SAFETENSORS
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import write_json
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.export import new_output
from fgvpl_jax.inference.model_card import model_card
from fgvpl_jax.methods import METHODS
from fgvpl_jax.methods.both_towers import BothTowers

# Families whose tensors are published under `VISION_NAMES` and `TEXT_NAMES`.
FAMILIES = (HUGGING_FACE_CLIP, METACLIP_2)
CLASS_WEIGHTS = "classifier.safetensors"
CLASSIFIER = "classifier.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Keys of the tokenizer's config that transformers fills with paths of the machine that saved it.
PATHS = ("name_or_path", "special_tokens_map_file", "tokenizer_file")
# Keys of a config that do not hold for the written weights, or name a folder of this machine.
OUTDATED = ("torch_dtype", "dtype", "_name_or_path")


def export_hugging_face(classifier: Classifier, output: str | Path) -> Path:
    """Writes the adapted CLIP to a new folder, completely or not at all.

    Args:
        classifier: A finished run of a method that trains weights of both towers.
        output: Path of the new folder.
    Returns:
        The path of the folder.
    Raises:
        UserError: See `new_output`; or if the method leaves the towers as they are, or the backbone
            is not in transformers' form.
    """
    folder = new_output(classifier, output)
    model = classifier.model
    if not isinstance(model, BothTowers):
        names = ", ".join(name for name, kind in METHODS.items() if issubclass(kind, BothTowers))
        raise UserError(
            f"{classifier.title} leaves the towers of CLIP as they are, so there is no adapted "
            f"CLIP to write: train with {names}, or export with --format=fgvpl"
        )
    directory, _ = find_checkpoint(classifier.clip.identity.name)
    family, config = family_of(directory)
    vision, text = model.merged_towers()
    if family not in FAMILIES or not isinstance(vision, VisionTower):
        raise UserError(
            f"the backbone {classifier.clip.identity.name} has the form of {family.name}; "
            f"--format=hf writes only {' and '.join(one.name for one in FAMILIES)}: export with "
            "--format=fgvpl"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fgvpl_", dir=folder.parent) as place:
        partial = Path(place) / folder.name
        partial.mkdir()
        for file in small_files(directory, family):
            if file.name == TOKENIZER_CONFIG:
                content = read_config_file(file)
                kept = {key: one for key, one in content.items() if key not in PATHS}
                write_json(partial / file.name, kept)
            else:
                shutil.copyfile(file, partial / file.name)
        for file in directory.glob(LICENCES):
            if file.is_file():
                shutil.copyfile(file, partial / file.name)
        write_json(partial / family.config_file, float32_config(config))
        tensors = published_tensors((vision, VISION_NAMES), (text, TEXT_NAMES))
        tensors[LOGIT_SCALE] = np.asarray(np.log(classifier.clip.logit_scale))
        save_file(tensors, partial / SAFETENSORS, metadata={"format": "pt"})
        weights = {"class_weights": np.asarray(model.class_weights())}
        save_file(weights, partial / CLASS_WEIGHTS)
        numbers = {
            "class_names": classifier.class_names,
            "template": classifier.templates[0],
            "temperature": classifier.results.temperature,
        }
        write_json(partial / CLASSIFIER, numbers)
        (partial / "README.md").write_text(model_card(classifier, directory), encoding="utf-8")
        partial.rename(folder)
    return folder


def float32_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a backbone's config for weights in float32, without paths."""
    towers = {
        name: {key: one for key, one in value.items() if key not in OUTDATED}
        for name, value in config.items()
        if isinstance(value, dict)
    }
    others = {key: value for key, value in config.items() if key not in OUTDATED}
    return {**others, **towers, "dtype": "float32"}


def check_hub_id(repository: str) -> None:
    """Refuses the name of a repository that the hub cannot have.

    Raises:
        UserError: If it is not `owner/name`.
    """
    if not HUB_ID.fullmatch(repository):
        raise UserError(
            f"--push_to_hub is {repository!r}: name a repository on the Hugging Face hub, such as "
            "owner/name"
        )


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository on the hub, which is created as private if it is new.

    Args:
        folder: Folder that `export_hugging_face` wrote.
        repository: `owner/name`.
    Returns:
        The URL of the repository.
    Raises:
        UserError: If the hub refuses it or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Add the adapted CLIP"
        )
    except Exception as error:  # the hub's client and its HTTP library have many
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder} is written, but could not be uploaded to {repository} ({reason}): log in "
            f"with `hf auth login`, then run `hf upload --private {repository} "
            f"{shlex.quote(str(folder))}`"
        ) from error
    return str(url)
