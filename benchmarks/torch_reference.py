"""FG-VPL as one would write it in PyTorch: the reference for speed.

It uses transformers' CLIP with frozen weights, rolls attention out by full matrix products,
computes each image's mask by scikit-image on the host, and runs the fine-grained layer over all
tokens. It computes the same as `fgvpl_jax.methods.FGVPL`, which a test checks. It runs on a GPU if
there is one.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from skimage.filters import threshold_otsu
from skimage.measure import label
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from fgvpl_jax import defaults
from fgvpl_jax.clip import CLIP, class_token_tower
from fgvpl_jax.clip.convert import published_tensors
from fgvpl_jax.clip.families.transformers_files import TEXT_NAMES, VISION_NAMES
from fgvpl_jax.clip.towers import TextTower, VisionTower
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.training.microbatches import usable_cores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TorchFGVPL(nn.Module):
    """Computes logits from pixels (Eqs. 2-19) for a given visual cache.

    Attention is fused wherever its weights are not needed.

    Attributes:
        prompt, fine_grained_layer, text_adapter, visual_adapter: Trained; the rest is frozen.
    """

    text_features: Tensor
    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, clip: CLIP, model: FGVPL):
        """Copies every parameter from a JAX model and its backbone."""
        super().__init__()
        vision = class_token_tower(clip.vision, "this benchmark")
        self.clip: Any = clip_like(vision, clip.text, "sdpa")
        self.weighing: Any = clip_like(vision, clip.text, "eager").vision_model.encoder.layers
        self.requires_grad_(False)
        self.last_layer = self.clip.vision_model.encoder.layers[-1]
        self.fine_grained_layer = copy.deepcopy(self.last_layer)
        self.prompt = nn.Parameter(to_torch(model.encoder.prompt[...]))
        dim = self.clip.visual_projection.out_features
        self.text_adapter, self.visual_adapter = nn.Linear(dim, dim), nn.Linear(dim, dim)
        with torch.no_grad():
            for ours, theirs in (
                (self.text_adapter, model.head.text_adapter),
                (self.visual_adapter, model.head.visual_adapter),
            ):
                ours.weight.copy_(to_torch(theirs.kernel[...]).T)
                ours.bias.copy_(to_torch(theirs.bias[...]))
        self.fine_grained_layer.requires_grad_(True)
        self.grid = model.encoder.vision.grid
        self.connectivity = model.encoder.connectivity
        self.text_residual_ratio = float(model.head.text_residual_ratio[...])
        self.object_logit_weight = float(model.head.object_logit_weight[...])
        self.logit_scale = float(model.logit_scale[...])
        self.register_buffer("text_features", to_torch(model.text_features[...]))
        for name in ("pixel_scale", "pixel_shift"):
            self.register_buffer(name, to_torch(getattr(model.image_encoder, name)[...]))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters for the optimizer."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(
        self,
        images: Tensor,
        cache: Sequence[Tensor],
        cache_logit_weight: float = defaults.CACHE_LOGIT_WEIGHT,
    ) -> Tensor:
        """Returns the logits [b, k] of uint8 images [b, H, W, 3].

        `cache` is (image features [s, e], object features [s, e], labels [s]).
        """
        image, object_, _, _ = self.features(images)
        keys, object_keys, labels = cache
        members = F.one_hot(labels, len(self.text_features)).to(image.dtype)
        text = F.normalize(self.text_features, dim=1)
        text = F.normalize(
            self.text_residual_ratio * torch.relu(self.text_adapter(text)) + text, dim=1
        )

        def both_paths(query: Tensor, keys: Tensor) -> Tensor:
            path1 = self.logit_scale * F.normalize(query, dim=1) @ text.T
            affinity = self.adapt(query) @ self.adapt(keys).T
            return path1 + cache_logit_weight * (torch.exp(affinity - 1) @ members)

        return both_paths(image, keys) + self.object_logit_weight * both_paths(object_, object_keys)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns f(x), f_O(x) and object-patch means, each [b, e], and the masks [b, n]."""
        tokens = self.embed(images)
        tokens = torch.cat([tokens, self.prompt.to(tokens.dtype).expand(len(tokens), -1, -1)], 1)
        attentions = []
        for layer in self.weighing[:-1]:
            tokens, weights = block(layer, tokens)
            attentions.append(weights.detach())
        mask = self.object_mask(attentions)
        original, _ = block(self.last_layer, tokens)
        projected = self.project(original)
        weights = mask.to(projected.dtype)
        patches = projected[:, 1 : 1 + mask.shape[1]]
        means = (patches * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)

        kept = F.pad(F.pad(mask, (1, 0), value=True), (0, len(self.prompt)), value=True)
        bias = torch.zeros(kept.shape, dtype=tokens.dtype, device=tokens.device)
        bias = bias.masked_fill(~kept, -torch.inf)[:, None, None]
        fine_grained, _ = block(self.fine_grained_layer, tokens, bias)
        return projected[:, 0], self.project(fine_grained[:, 0]), means, mask

    def zero_shot_logits(self, images: Tensor) -> Tensor:
        """Returns plain CLIP's logits."""
        image = self.clip.get_image_features(self.pixels(images)).pooler_output
        return self.logit_scale * F.normalize(image, dim=1) @ self.text_features.T

    def pixels(self, images: Tensor) -> Tensor:
        """Returns normalised pixels [b, 3, H, W]."""
        pixels = images.to(self.pixel_scale.dtype) * self.pixel_scale + self.pixel_shift
        return pixels.permute(0, 3, 1, 2).to(self.clip.dtype)

    def embed(self, images: Tensor) -> Tensor:
        """Embeds pixels as tokens and applies the pre-LayerNorm."""
        vision = self.clip.vision_model
        return vision.pre_layrnorm(vision.embeddings(self.pixels(images)))

    def project(self, tokens: Tensor) -> Tensor:
        """Projects tokens of the last layer to features."""
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(tokens))

    @torch.compiler.disable  # scikit-image works on the host
    @torch.no_grad()
    def object_mask(self, attentions: list[Tensor]) -> Tensor:
        """Rolls attention out by full products (Eqs. 6-7), then finds each mask by scikit-image."""
        with torch.autocast(DEVICE, enabled=False):  # it would round the products again
            rolled = attentions[0].float()
            for weights in attentions[1:]:
                rolled = weights.float() @ rolled
        gh, gw = self.grid
        maps = rolled[:, :, 0, 1 : 1 + gh * gw].sum(1).cpu().numpy().reshape(-1, gh, gw)
        masks = [largest_area(one, self.connectivity).ravel() for one in maps]
        return torch.from_numpy(np.stack(masks)).to(rolled.device)

    def adapt(self, features: Tensor) -> Tensor:
        """Applies L2 normalisation, adapter and residual, and L2 normalisation again."""
        unit = F.normalize(features, dim=1)
        return F.normalize(torch.relu(self.visual_adapter(unit)) + unit, dim=1)


def block(layer: Any, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Runs one layer of transformers' encoder; returns attention weights if it is not fused."""
    update, weights = layer.self_attn(layer.layer_norm1(tokens), attention_mask=bias)
    tokens = tokens + update
    return tokens + layer.mlp(layer.layer_norm2(tokens)), weights


def largest_area(significance: np.ndarray, connectivity: int) -> np.ndarray:
    """Returns the largest connected area above Otsu's threshold, or everything if there is none."""
    areas = label(significance > threshold_otsu(significance), connectivity=connectivity)
    sizes = np.bincount(areas.ravel())[1:]
    return areas == 1 + sizes.argmax() if len(sizes) else np.ones_like(areas, bool)


def clip_like(vision: VisionTower, text: TextTower, attention: str) -> CLIPModel:
    """Returns transformers' model with the same weights.

    Args:
        vision: Our image tower.
        text: Our text tower.
        attention: "eager", which returns the attention weights, or "sdpa", which is fused.
    """
    sizes = {
        name: {
            "hidden_size": tower.config.width,
            "intermediate_size": tower.config.mlp_width,
            "num_hidden_layers": tower.config.num_layers,
            "num_attention_heads": tower.config.num_heads,
            "hidden_act": tower.config.activation,
            "layer_norm_eps": tower.config.layer_norm_eps,
        }
        for name, tower in (("vision_config", vision), ("text_config", text))
    }
    sizes["vision_config"] |= {
        "image_size": vision.config.image_size,
        "patch_size": vision.config.patch_size,
    }
    sizes["text_config"] |= {
        "vocab_size": text.config.vocab_size,
        "max_position_embeddings": text.config.context_length,
        "eos_token_id": text.config.eos_token_id or 2,
    }
    config = CLIPConfig.from_dict({**sizes, "projection_dim": vision.config.embed_dim})
    model = CLIPModel._from_config(config, attn_implementation=attention)
    tensors = published_tensors((vision, VISION_NAMES), (text, TEXT_NAMES))
    unfilled = model.load_state_dict(
        {name: to_torch(value) for name, value in tensors.items()}, strict=False
    )
    assert not unfilled.unexpected_keys, unfilled
    assert set(unfilled.missing_keys) <= {"logit_scale"}, unfilled
    return model.eval()


def to_torch(array: ArrayLike) -> Tensor:
    """Copies an array to a tensor on the host."""
    return torch.from_numpy(np.array(array))


def contestants(
    clip: CLIP,
    model: FGVPL,
    images: np.ndarray,
    labels: np.ndarray,
    cache: Sequence[np.ndarray],
    learning_rate: float,
    weight_decay: float,
    dtype: str,
    *,
    compiled: bool = False,
) -> dict[str, Callable[[], Any]]:
    """Returns the reference's train step and evaluation, on as many threads as cores.

    Args:
        clip: Backbone.
        model: Model whose weights the reference copies.
        images: Batch, uint8.
        labels: Its labels.
        cache: Image features, object features and labels of the visual cache.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        dtype: Type that the reference computes in, by autocast.
        compiled: Whether `torch.compile` compiles the reference.
    """
    torch.set_num_threads(usable_cores())
    reference = TorchFGVPL(clip, model).to(DEVICE)
    # Otherwise autocast would cast each frozen weight again in every pass.
    reference.clip.to(getattr(torch, dtype))
    reference.weighing.to(getattr(torch, dtype))
    batch, targets = to_torch(images).to(DEVICE), to_torch(labels).long().to(DEVICE)
    keys, object_keys, key_labels = (to_torch(array).to(DEVICE) for array in cache)
    support = (keys, object_keys, key_labels.long())
    precision = partial(torch.autocast, DEVICE, getattr(torch, dtype), enabled=dtype != "float32")
    logits_of, zero_shot = reference.forward, reference.zero_shot_logits
    if compiled:
        logits_of, zero_shot = torch.compile(logits_of), torch.compile(zero_shot)
    optimizer = torch.optim.AdamW(
        reference.trainable_parameters(), lr=learning_rate, weight_decay=weight_decay
    )

    def train_step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = F.cross_entropy(logits_of(batch, support), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def evaluation() -> list[np.ndarray]:
        with precision():
            logits = logits_of(batch, support), zero_shot(batch)
        return [one.float().cpu().numpy() for one in logits]

    return {"torch_train_step": train_step, "torch_evaluation": evaluation}


@torch.inference_mode()
def matmul(rows: int, width: int, hidden: int, times: int, dtype: str) -> Callable[[], Any]:
    """Returns a call that computes the two bare products of the MLP `times` times."""
    x, up, down = (
        torch.randn(*size, device=DEVICE, dtype=getattr(torch, dtype))
        for size in ((rows, width), (width, hidden), (hidden, width))
    )

    def product() -> Tensor:
        for _ in range(times):
            result = (x @ up) @ down
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return product
