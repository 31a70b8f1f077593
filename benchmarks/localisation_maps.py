"""Maps of the object that `benchmarks/localisation.py` compares, and thresholds for their masks.

The package's own maps come from its encoder. The others did not become options: they are measured
here, so that the choice can be repeated on other photos or another CLIP.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8
from skimage import filters
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fgvpl_jax.clip import ImageEncoder, class_token_tower
from fgvpl_jax.clip.layers import ACTIVATIONS, attention_weights
from fgvpl_jax.recognition import normalize
from fgvpl_jax.visual_prompt import ATTENTION_MAPS, FGImageEncoder, attention_map, object_mask
from fgvpl_jax.visual_prompt.border_contrast import border_contrast, middle

CUT_SHARPNESS = 5.0  # of the normalised cut's affinities exp(s · (cos - 1))
PROBE_FOLDS = 2
PROBE_C = 0.01


class LastLayer(NamedTuple):
    """The last layer of the tower, as it sees a batch.

    Attributes:
        tokens: Tokens that enter it.
        keys: Keys of each head.
        values: Values of each head.
        attentions: Attention weights of all layers, this one last.
    """

    tokens: Float[Array, "b t d"]
    keys: Float[Array, "b h t c"]
    values: Float[Array, "b h t c"]
    attentions: Sequence[Float[Array, "b h t t"]]


class Seen(NamedTuple):
    """Results of the device for a batch.

    Attributes:
        maps: Maps by name.
        masks: Object masks by name.
        middle_tokens: Patch tokens that the border contrast is computed from.
    """

    maps: dict[str, Float[Array, "b n"]]
    masks: dict[str, Bool[Array, "b n"]]
    middle_tokens: Float[Array, "b n d"]


def maps_of(
    encoder: ImageEncoder,
    images: UInt8[Array, "b H W 3"],
    class_feature: Float[Array, "e"] | None = None,
) -> Seen:
    """Computes every map of a batch that needs no other photo; must be called under jit.

    Args:
        encoder: Plain CLIP's image encoder.
        images: Crops.
        class_feature: Unit text feature of the photos' class; without it, the two maps that need a
            class are left out.
    """
    vision = class_token_tower(encoder.vision, "this benchmark")
    pixels = encoder.normalize_pixels(images)
    maps, masks = {}, {}
    for name in ATTENTION_MAPS:
        found = FGImageEncoder(vision, 0, attention_map=name, rngs=nnx.Rngs(0))(pixels)
        maps[name], masks[name] = found.attention_map, found.object_mask
    tokens, entering, attentions = vision.embed(pixels), [], []
    for layer in vision.layers:
        entering.append(tokens)
        tokens, weights = layer(tokens)
        attentions.append(weights)
    last = list(vision.layers)[-1]
    normed = last.norm1(entering[-1])
    keys = last.attention.queries_and_keys(normed)[1]
    values = heads(last.attention.value(normed), keys.shape[1])
    seen = LastLayer(entering[-1], keys, values, attentions)
    others = {
        "layer_L": attentions[-1][:, :, 0, 1:].sum(axis=1),
        "last_3_residual_with_L": attention_map(attentions[-3:], 0, residual=0.5),
        "value_attention": attention_weights(values * values.shape[-1] ** -0.5, values)[
            :, :, 0, 1:
        ].sum(axis=1),
        "normalised_cut": normalised_cut(keys, vision.grid),
        "patch_to_image": patch_evidence(encoder, seen, vision.project(tokens[:, 0])),
    }
    if class_feature is not None:
        feature = jnp.broadcast_to(class_feature, (len(images), *class_feature.shape))
        others["patch_to_class"] = patch_evidence(encoder, seen, feature)
        others["gradient_weighted"] = gradient_weighted(encoder, seen, feature)
    for name, one in others.items():
        maps[name], masks[name] = one, object_mask(one, vision.grid)
    index = middle(vision)
    return Seen(maps, masks, vision.layers[index].norm1(entering[index])[:, 1:])


def heads(x: Float[Array, "b t d"], num_heads: int) -> Float[Array, "b h t c"]:
    """Splits the last axis into heads."""
    return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


def normalised_cut(keys: Float[Array, "b h t c"], grid: tuple[int, int]) -> Float[Array, "b n"]:
    """Returns the second eigenvector of the patches' graph; its sign makes the border the lower.

    The graph joins patches by exp(5·(cos - 1)) of their keys.
    """
    patches = keys[:, :, 1:].swapaxes(1, 2)
    unit = normalize(patches.reshape(*patches.shape[:2], -1))
    affinity = jnp.exp(CUT_SHARPNESS * (unit @ unit.mT - 1))
    scale = affinity.sum(axis=-1) ** -0.5
    _, vectors = jnp.linalg.eigh(scale[:, :, None] * affinity * scale[:, None])
    second = vectors[:, :, -2] * scale
    border = np.pad(np.zeros((grid[0] - 2, grid[1] - 2), bool), 1, constant_values=True).ravel()
    higher = second[:, border].mean(axis=1) > second[:, ~border].mean(axis=1)
    return jnp.where(higher[:, None], -second, second)


def patch_evidence(
    encoder: ImageEncoder, seen: LastLayer, feature: Float[Array, "b e"]
) -> Float[Array, "b n"]:
    """Returns the cosines of a feature with the patches' values of the last layer, projected."""
    merged = seen.values.swapaxes(1, 2).reshape(*seen.tokens.shape)
    vision = class_token_tower(encoder.vision, "this benchmark")
    layer = list(vision.layers)[-1]
    patches = normalize(vision.project(layer.attention.out(merged)))[:, 1:]
    return jnp.einsum("bne,be->bn", patches, normalize(feature))


def gradient_weighted(
    encoder: ImageEncoder, seen: LastLayer, feature: Float[Array, "b e"]
) -> Float[Array, "b n"]:
    """Returns the last layer's class row times its positive gradient of the cosine with a class."""
    vision = class_token_tower(encoder.vision, "this benchmark")
    layer = list(vision.layers)[-1]

    def cosine(row: Float[Array, "b h t"]) -> Float[Array, ""]:
        mixed = jnp.einsum("bht,bhtc->bhc", row, seen.values).reshape(len(row), -1)
        token = seen.tokens[:, 0] + layer.attention.out(mixed)
        hidden = ACTIVATIONS[layer.activation](layer.fc1(layer.norm2(token)))
        image = normalize(vision.project(token + layer.fc2(hidden)))
        return (image * feature).sum()

    row = seen.attentions[-1][:, :, 0]
    return (row * jax.nn.relu(jax.grad(cosine)(row)))[:, :, 1:].sum(axis=1)


def contrast_less_mean(
    middle_tokens: Float[np.ndarray, "N n d"], grid: tuple[int, int]
) -> Float[np.ndarray, "N n"]:
    """Returns the border contrast after the mean token of all photos is subtracted."""
    centred = middle_tokens - middle_tokens.mean(axis=(0, 1))
    return np.asarray(border_contrast(jnp.asarray(centred), grid))


def probe(
    middle_tokens: Float[np.ndarray, "N n d"], covered: Float[np.ndarray, "N n"]
) -> Float[np.ndarray, "N n"]:
    """Returns the log odds of a classifier of patches that is trained on the true masks.

    This is a bound and not a method: a logistic regression on the same tokens that knows the answer
    for half of the photos and is measured on the other half, in turn.

    Args:
        middle_tokens: Patch tokens.
        covered: Share of each patch that the object covers.
    """
    fold = np.arange(len(covered)) * PROBE_FOLDS // len(covered)
    odds = np.zeros(covered.shape)
    for held_out in range(PROBE_FOLDS):
        use = fold != held_out
        tokens = middle_tokens[use].reshape(-1, middle_tokens.shape[-1])
        share = covered[use].ravel()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=500))
        model.fit(
            np.concatenate([tokens, tokens]),
            np.repeat([1, 0], len(share)),
            logisticregression__sample_weight=np.concatenate([share, 1 - share]),
        )
        rest = middle_tokens[~use]
        odds[~use] = model.decision_function(rest.reshape(-1, rest.shape[-1])).reshape(
            rest.shape[:2]
        )
    return odds


THRESHOLDS: dict[str, Callable[[Float[np.ndarray, "n"]], Any]] = {
    "Otsu": filters.threshold_otsu,
    "Li": filters.threshold_li,
    "isodata": filters.threshold_isodata,
    "Yen": filters.threshold_yen,
    "triangle": filters.threshold_triangle,
    "mean": np.mean,
    "0.3 of the range": lambda values: values.min() + 0.3 * np.ptp(values),
    "0.5 of the range": lambda values: values.min() + 0.5 * np.ptp(values),
}


def masks_above(
    maps: Float[np.ndarray, "N n"], threshold: str, grid: tuple[int, int]
) -> Bool[np.ndarray, "N n"]:
    """Returns the largest area above one of `THRESHOLDS` of each map."""
    above = [values > THRESHOLDS[threshold](values) for values in maps]
    # The threshold of a map of two values is between them.
    return np.asarray(object_mask(jnp.asarray(above, jnp.float32), grid))
