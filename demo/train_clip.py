"""Trains the tiny CLIP of the demo and writes it in Hugging Face's format.

    python demo/train_clip.py --out=demo/clip

`--tower=siglip` trains a tiny SigLIP instead and writes it in the same format, `--tower=resnet` a
tiny ResNet in OpenCLIP's. All use the same scenes, captions and softmax loss.

Scenes and names come from the 90 of 100 pairs of colour and shape in `fgvpl_jax/data/shapes.py`
that the benchmark does not use. The model learns which of the 90 sentences describes an image.
Training takes half an hour on two cores; `demo/clip/README.md` reports the results.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from absl import app, flags
from flax import nnx
from jaxtyping import Array
from safetensors.numpy import save_file
from tokenizers import models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Split

from fgvpl_jax.clip.convert import LOGIT_SCALE, published_tensors
from fgvpl_jax.clip.families import FAMILIES, read_config_file
from fgvpl_jax.clip.families.hugging_face_clip import HUGGING_FACE_CLIP
from fgvpl_jax.clip.families.open_clip_resnet import BATCH_NORM_EPS, OPEN_CLIP_RESNET, BatchNorm
from fgvpl_jax.clip.families.siglip import SIGLIP
from fgvpl_jax.clip.family import Architecture
from fgvpl_jax.clip.layers import INIT_STD
from fgvpl_jax.data.shapes import COLOURS, SHAPES, SIDE, draw_scene, pretraining_pairs
from fgvpl_jax.errors import UserError
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import trainable_copy

OUT = flags.DEFINE_string("out", None, "Folder to write the checkpoint into.")
TOWER = flags.DEFINE_enum(
    "tower", "vit", ["vit", "siglip", "resnet"], "Image tower, which also decides the file format."
)
NUM_SCENES = flags.DEFINE_integer("num_scenes", 45_000, "Number of scenes to draw.")
EPOCHS = flags.DEFINE_integer("epochs", 5, "Number of passes over the scenes.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Number of scenes per step.")

TEMPLATES = ("a drawing of a {}.", "a {}.", "a picture of a {} among other things.")
WORDS = (*COLOURS, *SHAPES, *["a", "drawing", "of", "picture", "among", "other", "things"])
START, END = "<|startoftext|>", "<|endoftext|>"
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
STATISTICS_BATCHES = 100  # after which 0.003% of the first statistics is left
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


def clip_tokenizer_files(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """Returns the content of CLIP's tokenizer files, by name."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {
        "vocab.json": vocab,
        "merges.txt": "\n".join(lines) + "\n",
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "model_max_length": 32,
        },
    }


def vit_files() -> dict[str, Any]:
    """Returns the content of the small files of a CLIP in transformers' form."""
    vocab, merges = vocabulary()
    size = {"num_attention_heads": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = size | {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 5}
    vision |= {"image_size": SIDE, "patch_size": 8}
    text = size | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"vocab_size": len(vocab), "max_position_embeddings": 32}
    text |= {"bos_token_id": vocab[START], "eos_token_id": vocab[END], "pad_token_id": vocab[END]}
    return clip_tokenizer_files(vocab, merges) | {
        "config.json": {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": 64,
            "vision_config": vision,
            "text_config": text,
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


def siglip_files() -> dict[str, Any]:
    """Returns the content of the small files of a SigLIP with a tokenizer like SigLIP 2's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁.", *ascii_lowercase]
    merges: list[tuple[str, str]] = []
    for word in (f"▁{word}" for word in WORDS):  # as one token, with the space before it
        for end in range(1, len(word)):
            pair = (word[:end], word[end])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = Split("▁", "merged_with_next")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocab["<eos>"])]
    )
    tokenizer.add_special_tokens(special)
    size = {"num_attention_heads": 4, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    vision = size | {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    vision |= {"image_size": SIDE, "patch_size": 8}
    text = size | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"vocab_size": len(vocab), "max_position_embeddings": 32, "projection_size": 96}
    text |= {name[1:-1] + "_token_id": vocab[name] for name in ("<bos>", "<eos>", "<pad>")}
    return {
        "config.json": {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "vision_config": vision,
            "text_config": text,
        },
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": False,
            "add_eos_token": True,
            "padding_side": "right",
            **{f"{token[1:-1]}_token": token for token in special},
        },
        "preprocessor_config.json": {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "resample": 3,
            "image_mean": MEAN,
            "image_std": STD,
        },
    }


def resnet_files() -> dict[str, Any]:
    """Returns the content of the small files of a ResNet in OpenCLIP's form.

    A cell is 32 pixels wide, so 8 × 8 cells need images of 256 pixels.
    """
    vocab, merges = vocabulary()
    text = {"context_length": 32, "vocab_size": len(vocab), "width": 64, "heads": 4, "layers": 2}
    return clip_tokenizer_files(vocab, merges) | {
        "open_clip_config.json": {
            "model_cfg": {
                "embed_dim": 64,
                "quick_gelu": True,
                "vision_cfg": {
                    "image_size": 4 * SIDE,
                    "layers": [1, 1, 1, 1],
                    "width": 8,
                    "head_width": 32,
                },
                "text_cfg": text | {"mlp_ratio": 2.0},
            },
            "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"},
        },
    }


FAMILY_OF = {"vit": HUGGING_FACE_CLIP, "siglip": SIGLIP, "resnet": OPEN_CLIP_RESNET}
FILES_OF = {"vit": vit_files, "siglip": siglip_files, "resnet": resnet_files}


def write_small_files(out: Path, tower: str) -> None:
    """Writes the config, the tokenizer and the preparation of images of a checkpoint.

    Raises:
        UserError: If the folder holds a config file of another form.
    """
    family = FAMILY_OF[tower]
    for name in sorted({one.config_file for one in FAMILIES}):
        file = out / name
        if file.is_file() and not (
            name == family.config_file and family.matches(read_config_file(file))
        ):
            raise UserError(
                f"{file} belongs to a checkpoint of another form than {family.name}: name another "
                "folder with --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name, content in FILES_OF[tower]().items():
        if not isinstance(content, str):
            content = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (out / name).write_text(content)


class BatchStatistics(BatchNorm):
    """A BatchNorm that normalises by the statistics of the batch, and keeps their running mean."""

    def __init__(self, norm: BatchNorm):
        self.scale, self.bias = norm.scale, norm.bias
        self.mean, self.variance = norm.mean, norm.variance

    def __call__(self, x: Array) -> Array:
        """Normalises each channel; see `BatchNorm`."""
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        self.mean[...] += (mean - self.mean[...]) / 10
        self.variance[...] += (variance - self.variance[...]) / 10
        scale = self.scale[...] * jax.lax.rsqrt(variance + BATCH_NORM_EPS)
        return (x - mean) * scale + self.bias[...]


def use_batch_statistics(tower: nnx.Module) -> None:
    """Replaces every BatchNorm of a tower, whose own statistics never change."""
    for _, node in list(nnx.iter_graph(tower)):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, BatchNorm):
                    setattr(node, name, BatchStatistics(value))


class Pair(nnx.Module):
    """Both towers and the logit scale, all trainable."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        vision, text = nnx.eval_shape(architecture.vision), nnx.eval_shape(architecture.text)
        self.vision = trainable_copy(type(vision)(vision.config, rngs=rngs))
        self.text = trainable_copy(type(text)(text.config, rngs=rngs))
        use_batch_statistics(self.vision)
        for tower in (self.vision, self.text):
            widen_initial_values(tower)
        self.logit_scale = nnx.Param(jnp.log(10.0))


def widen_initial_values(tower: nnx.Module) -> None:
    """Scales kernels to a standard deviation of 1/sqrt(inputs), and embeddings and probe to 0.2.

    Filters, which a ReLU follows, have √2 times as much.

    CLIP's 0.02 suits a width of 1,000. At a width of 96, attention would start uniform and stay so
    for long.
    """
    for path, variable in nnx.to_flat_state(nnx.state(tower)):
        if path[-1] == "kernel":
            variable[...] = variable[...] * (variable.shape[0] ** -0.5 / INIT_STD)
        elif path[-1] == "filters":
            inputs = np.prod(variable.shape[:3])
            variable[...] = variable[...] * ((2 / inputs) ** 0.5 / INIT_STD)
        elif str(path[-1]).endswith(("embedding", "probe")):
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
    out, batch_size, family = Path(OUT.value), BATCH_SIZE.value, FAMILY_OF[TOWER.value]
    try:
        write_small_files(out, TOWER.value)
    except UserError as error:
        raise SystemExit(str(error)) from error
    architecture = family.read(out, read_config_file(out / family.config_file))
    tokenizer, side = architecture.tokenizer, architecture.image_processor.side
    names = [" ".join(pair) for pair in pretraining_pairs()]
    captions = np.stack([tokenizer([t.format(n) for n in names]) for t in TEMPLATES])
    images, labels = draw_all(NUM_SCENES.value)
    print(f"drew {len(images)} scenes of {len(names)} classes", flush=True)

    model = Pair(architecture, nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    steps = EPOCHS.value * (len(images) // batch_size)
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, steps // 20, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    )
    optimizer_state = optimizer.init(state)

    def prepared(pixels: Array) -> Array:
        values = pixels.astype(jnp.float32)
        if side != SIDE:
            values = jax.image.resize(values, (len(pixels), side, side, 3), "cubic").clip(0, 255)
        return (values / 255 - jnp.array(MEAN)) / jnp.array(STD)

    @jax.jit
    def step(
        state: nnx.State, optimizer_state: Any, pixels: Array, ids: Array, labels: Array
    ) -> tuple[nnx.State, Any, Array, Array]:
        def loss_of(state: nnx.State) -> tuple[Array, Array]:
            model = nnx.merge(graphdef, state)
            image, text = normalize(model.vision(prepared(pixels))), normalize(model.text(ids))
            logits = jnp.exp(model.logit_scale[...]) * image @ text.T
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (logits.argmax(axis=1) == labels).mean()

        (loss, accuracy), gradients = jax.value_and_grad(loss_of, has_aux=True)(state)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, state)
        return optax.apply_updates(state, updates), optimizer_state, loss, accuracy

    @jax.jit
    def observed(state: nnx.State, pixels: Array) -> nnx.State:
        model = nnx.merge(graphdef, state)
        model.vision(prepared(pixels))
        return nnx.state(model)

    rng, started = np.random.default_rng(0), time.monotonic()
    done = 0
    for epoch in range(EPOCHS.value):
        order = rng.permutation(len(images))[: len(images) // batch_size * batch_size]
        for rows in order.reshape(-1, batch_size):
            ids = captions[rng.integers(len(TEMPLATES))]
            pixels = images[rows]
            if rng.random() < 0.5:
                pixels = pixels[:, :, ::-1]
            state, optimizer_state, loss, accuracy = step(
                state, optimizer_state, pixels, ids, labels[rows]
            )
            done += 1
            if done % 50 == 0:
                rate = done * batch_size / (time.monotonic() - started)
                print(
                    f"epoch {epoch + 1}, step {done} of {steps}: loss {float(loss):.3f}, accuracy "
                    f"{float(accuracy):.3f}, {rate:.0f} images/s",
                    flush=True,
                )
    if TOWER.value == "resnet":  # the statistics that the trained filters have
        for rows in order.reshape(-1, batch_size)[:STATISTICS_BATCHES]:
            state = observed(state, images[rows])
    nnx.update(model, state)
    tensors = published_tensors(
        (model.vision, architecture.vision_names), (model.text, architecture.text_names)
    )
    shape = (1,) if TOWER.value == "siglip" else ()
    tensors[LOGIT_SCALE] = np.full(shape, model.logit_scale[...], np.float32)
    tensors |= {name: np.zeros(shape, np.float32) for name in architecture.unused}
    save_file(tensors, out / family.weight_formats[0], metadata={"format": "pt"})


if __name__ == "__main__":
    flags.mark_flag_as_required("out")
    app.run(main)
