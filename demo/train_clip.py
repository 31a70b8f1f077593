"""Trains the tiny CLIP of the demo and writes it in Hugging Face's format.

    python demo/train_clip.py --out=demo/clip

Scenes and names come from the 90 of 100 pairs of colour and shape in `fgvpl_jax/data/shapes.py`
that the benchmark does not use. The model learns which of the 90 sentences describes an image.
Training takes half an hour on two cores; `demo/clip/README.md` reports the results.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from jaxtyping import Array
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.clip.convert import LOGIT_SCALE, hugging_face_tensors
from fgvpl_jax.clip.image_input import TransformersProcessor
from fgvpl_jax.clip.layers import INIT_STD
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import TextTower, VisionTower
from fgvpl_jax.data.shapes import COLOURS, SHAPES, SIDE, draw_scene, pretraining_pairs
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import trainable_copy

OUT = flags.DEFINE_string("out", "demo/clip", "Folder to write the checkpoint into.")
NUM_SCENES = flags.DEFINE_integer("num_scenes", 45_000, "Number of scenes to draw.")
EPOCHS = flags.DEFINE_integer("epochs", 5, "Number of passes over the scenes.")

TEMPLATES = ("a drawing of a {}.", "a {}.", "a picture of a {} among other things.")
WORDS = (*COLOURS, *SHAPES, *["a", "drawing", "of", "picture", "among", "other", "things"])
START, END = "<|startoftext|>", "<|endoftext|>"
BATCH_SIZE = 128
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns a vocabulary of bytes and caption words, and the merges that form the words."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def write_small_files(out: Path) -> tuple[VisionConfig, TextConfig]:
    """Writes config.json and the files of tokenizer and image processor; returns both configs."""
    vocab, merges = vocabulary()
    size = {"num_attention_heads": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = size | {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 5}
    vision |= {"image_size": SIDE, "patch_size": 8}
    text = size | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"vocab_size": len(vocab), "max_position_embeddings": 32}
    text |= {"bos_token_id": vocab[START], "eos_token_id": vocab[END], "pad_token_id": vocab[END]}
    files = {
        "config.json": {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": 64,
            "vision_config": vision,
            "text_config": text,
        },
        "vocab.json": vocab,
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "model_max_length": 32,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
            "resample": 3,
            "image_mean": MEAN,
            "image_std": STD,
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n")
    return (
        VisionConfig(
            96, 5, num_heads=4, mlp_width=384, image_size=SIDE, patch_size=8, embed_dim=64
        ),
        TextConfig(
            64,
            2,
            num_heads=4,
            mlp_width=128,
            vocab_size=len(vocab),
            context_length=32,
            eos_token_id=vocab[END],
            embed_dim=64,
        ),
    )


class Pair(nnx.Module):
    """Both towers and the logit scale, all trainable."""

    def __init__(self, vision: VisionConfig, text: TextConfig, rngs: nnx.Rngs):
        self.vision = trainable_copy(VisionTower(vision, rngs=rngs))
        self.text = trainable_copy(TextTower(text, rngs=rngs))
        for tower in (self.vision, self.text):
            widen_initial_values(tower)
        self.logit_scale = nnx.Param(jnp.log(10.0))


def widen_initial_values(tower: nnx.Module) -> None:
    """Scales kernels to a standard deviation of 1/sqrt(inputs) and embeddings to 0.2.

    CLIP's 0.02 suits a width of 1,000. At a width of 96, attention would start uniform and stay so
    for long.
    """
    for path, variable in nnx.to_flat_state(nnx.state(tower)):
        if path[-1] == "kernel":
            variable[...] = variable[...] * (variable.shape[0] ** -0.5 / INIT_STD)
        elif str(path[-1]).endswith("embedding"):
            variable[...] = variable[...] * (0.2 / INIT_STD)


def draw_all(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scenes as uint8 pixels, and the index of each scene's pair."""
    pairs = pretraining_pairs()
    labels = np.arange(count) % len(pairs)

    def draw(i: int) -> np.ndarray:
        # Uses its own random stream: scenes of the benchmark are seeded by triples.
        rng = np.random.default_rng((2023, i))
        colour, shape = pairs[labels[i]]
        return np.asarray(draw_scene(colour, shape, rng).image)

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(draw, range(count)))), labels


def main(_: list[str]) -> None:
    """Draws the scenes, trains the model and writes the checkpoint."""
    out = Path(OUT.value)
    vision_config, text_config = write_small_files(out)
    tokenizer = Tokenizer(out, text_config)
    TransformersProcessor(out, vision_config.image_size)  # the written file must fit the tower
    names = [" ".join(pair) for pair in pretraining_pairs()]
    captions = np.stack([tokenizer([t.format(n) for n in names]) for t in TEMPLATES])
    images, labels = draw_all(NUM_SCENES.value)
    print(f"drew {len(images)} scenes of {len(names)} classes", flush=True)

    model = Pair(vision_config, text_config, nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    steps = EPOCHS.value * (len(images) // BATCH_SIZE)
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, steps // 20, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    )
    optimizer_state = optimizer.init(state)

    @jax.jit
    def step(
        state: nnx.State, optimizer_state: Any, pixels: Array, ids: Array, labels: Array
    ) -> tuple[nnx.State, Any, Array, Array]:
        def loss_of(state: nnx.State) -> tuple[Array, Array]:
            model = nnx.merge(graphdef, state)
            pixels_in = (pixels.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)
            image, text = normalize(model.vision(pixels_in)), normalize(model.text(ids))
            logits = jnp.exp(model.logit_scale[...]) * image @ text.T
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (logits.argmax(axis=1) == labels).mean()

        (loss, accuracy), gradients = jax.value_and_grad(loss_of, has_aux=True)(state)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, state)
        return optax.apply_updates(state, updates), optimizer_state, loss, accuracy

    rng, started = np.random.default_rng(0), time.monotonic()
    done = 0
    for epoch in range(EPOCHS.value):
        order = rng.permutation(len(images))[: len(images) // BATCH_SIZE * BATCH_SIZE]
        for rows in order.reshape(-1, BATCH_SIZE):
            ids = captions[rng.integers(len(TEMPLATES))]
            pixels = images[rows]
            if rng.random() < 0.5:
                pixels = pixels[:, :, ::-1]
            state, optimizer_state, loss, accuracy = step(
                state, optimizer_state, pixels, ids, labels[rows]
            )
            done += 1
            if done % 50 == 0:
                rate = done * BATCH_SIZE / (time.monotonic() - started)
                print(
                    f"epoch {epoch + 1}, step {done} of {steps}: loss {float(loss):.3f}, accuracy "
                    f"{float(accuracy):.3f}, {rate:.0f} images/s",
                    flush=True,
                )
    nnx.update(model, state)
    tensors = hugging_face_tensors(model.vision, model.text)
    tensors[LOGIT_SCALE] = np.asarray(model.logit_scale[...])
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    app.run(main)
