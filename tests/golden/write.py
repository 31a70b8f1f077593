"""Writes the golden files: outputs of transformers' CLIP and of a float64 recomputation of FG-VPL.

With these files, tests check parity with PyTorch and with the equations without PyTorch. Inputs and
weights are drawn from seeds and only checksummed; the files hold outputs. Run this after changing
`inputs.py` or the generator in `tests/tiny_clip.py`, never to make a failing comparison pass:

    python -m tests.golden.write

Needs torch and scikit-image.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, CLIPTokenizer

from tests.golden import recomputation
from tests.golden.inputs import (
    CASES,
    CLASS_NAMES,
    CLIP_FILE,
    DIRECTORY,
    FG_VPL_FILE,
    QUERY_LABELS,
    SEED,
    SUPPORT_LABELS,
    TEMPLATES,
    TEXTS,
    Case,
    case_inputs,
    checksum,
    clip_pixels,
)
from tests.tiny_clip import END, KINDS, random_tensors, tiny_config, vocabulary, write_tiny_clip

Arrays = dict[str, np.ndarray]


def transformers_clip(directory: Path, attention: str) -> CLIPModel:
    """Loads CLIP in float64; results in float32 differ between CPUs by as much as our bound."""
    model = CLIPModel.from_pretrained(directory, attn_implementation=attention, dtype=torch.float64)
    return model.eval()


def token_ids(directory: Path, texts: list[str], config: dict[str, Any]) -> np.ndarray:
    rows = CLIPTokenizer.from_pretrained(directory)(
        texts,
        padding="max_length",
        max_length=config["text_config"]["max_position_embeddings"],
    )
    return np.array(rows["input_ids"], np.int32)


def odd_token_ids(context: int) -> np.ndarray:
    """Returns texts with several end tokens, with no end token, and with id 2 next to larger ids.

    The pooling conventions of CLIP checkpoints differ on these texts.
    """
    ids = np.full((3, context), 5, np.int32)
    ids[0, [4, 9]] = vocabulary()[END]
    ids[1, 7] = 300
    ids[2, [3, 8]] = 2, 400
    return ids


def clip_outputs(kind: str) -> Arrays:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = write_tiny_clip(directory, SEED, **KINDS[kind])
        pixels = clip_pixels(config)
        tokenized = token_ids(directory, TEXTS, config)
        ids = np.concatenate([tokenized, odd_token_ids(tokenized.shape[1])])
        images = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float64)
        with torch.no_grad():
            model = transformers_clip(directory, "sdpa")
            texts = torch.tensor(ids.astype(np.int64))
            outputs = {
                "checksum": np.array(checksum([*random_tensors(config, SEED).values(), pixels])),
                "token_ids": ids,
                "image_features": model.get_image_features(images).pooler_output.numpy(),
                "text_features": model.get_text_features(texts).pooler_output.numpy(),
                "zero_shot_logits": model(texts, images).logits_per_image.numpy(),
            }
            if kind == "openai":
                # Only the eager implementation returns its weights.
                model = transformers_clip(directory, "eager")
                attentions = model.vision_model(images, output_attentions=True).attentions
                outputs["attentions"] = torch.stack(attentions).numpy()
    return outputs


def fg_vpl_outputs(case: Case) -> Arrays:
    config, inputs = tiny_config(**case.clip), case_inputs(case)
    tower = recomputation.VisionTower(inputs.tensors, config)

    def encode(images: np.ndarray) -> Arrays:
        each = [
            recomputation.encode_image(
                pixels,
                tower,
                inputs.prompt.astype(np.float64),
                recomputation.part(inputs.fine_grained_layer, ""),
                case.connectivity,
            )
            for pixels in recomputation.normalize_pixels(images)
        ]
        return {name: np.stack([features[name] for features in each]) for name in each[0]}

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_tiny_clip(directory, SEED, **case.clip)
        sentences = [t.format(n.replace("_", " ")) for n in CLASS_NAMES for t in TEMPLATES]
        ids = token_ids(directory, sentences, config)
    ids = ids.reshape(len(CLASS_NAMES), len(TEMPLATES), -1)
    text_weights = recomputation.class_text_features(ids, inputs.tensors, config)
    logit_scale = np.exp(inputs.tensors["logit_scale"].astype(np.float64))
    pixels = recomputation.normalize_pixels(inputs.queries)
    plain = np.stack([tower.plain_features(image) for image in pixels])
    queries, support = encode(inputs.queries), encode(inputs.support)
    for features in (queries, support):
        refuse_unstable_masks(features, tower.side, case.connectivity)
    outputs = {
        "checksum": np.array(inputs.checksum()),
        "text_weights": text_weights,
        "zero_shot_logits": logit_scale * recomputation.unit(plain) @ text_weights.T,
    }
    outputs |= {f"queries/{name}": value for name, value in queries.items()}
    outputs |= {f"support/{name}": value for name, value in support.items()}
    for object_query in ("class_token", "object_patches"):
        logits = recomputation.two_pathway_logits(
            queries,
            object_query,
            support,
            SUPPORT_LABELS,
            text_weights,
            inputs.text_adapter,
            inputs.visual_adapter,
            logit_scale=logit_scale,
            text_residual_ratio=case.text_residual_ratio,
            object_logit_weight=case.object_logit_weight,
            cache_logit_weight=case.cache_logit_weight,
        )
        outputs[f"{object_query}/logits"] = logits
        outputs[f"{object_query}/loss"] = recomputation.cross_entropy(logits, QUERY_LABELS)
    return outputs


def refuse_unstable_masks(features: Arrays, side: int, connectivity: int) -> None:
    """Raises ValueError for masks that rounding to float32 could change on another machine."""
    rng = np.random.default_rng(SEED)
    for significance, mask in zip(features["attention_map"], features["object_mask"], strict=True):
        for _ in range(20):
            rounded = significance * (1 + 1e-5 * rng.uniform(-1, 1, significance.shape))
            if (recomputation.object_mask(rounded, side, connectivity) != mask).any():
                raise ValueError("a mask depends on rounding: choose another seed in inputs.py")


def write(directory: Path) -> None:
    for file, groups in (
        (CLIP_FILE, {kind: clip_outputs(kind) for kind in KINDS}),
        (FG_VPL_FILE, {name: fg_vpl_outputs(case) for name, case in CASES.items()}),
    ):
        arrays = {f"{group}/{name}": x for group, xs in groups.items() for name, x in xs.items()}
        np.savez_compressed(directory / file, **arrays)


if __name__ == "__main__":
    write(DIRECTORY)
