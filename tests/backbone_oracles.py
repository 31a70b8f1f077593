"""Each family's own library as an oracle; without it, importing this skips a test module."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

torch = pytest.importorskip("torch", reason="compares live with PyTorch: make parity")

# `make parity` installs OpenCLIP and what it imports here, where nothing else finds them:
# transformers uses any torchvision, also one that cannot be imported.
sys.path.append(str(Path(sys.prefix) / "oracles"))
# torchvision from PyPI is built for CUDA, so that its operators do not load with PyTorch for CPUs;
# these two must be declared before it can be imported. OpenCLIP uses neither.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

open_clip = pytest.importorskip("open_clip", reason="compares live with OpenCLIP: make parity")

Preprocess = Callable[[Image.Image], np.ndarray]


def vary(model: Any) -> Any:
    """Draws the biases, norms and statistics of a random model, which begin at 0 and 1."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")) or name == "visual.trunk.head.weight":
                tensor.normal_(std=0.05)
            elif tensor.ndim == 1 and name.endswith(("weight", "running_var")):
                tensor.uniform_(0.8, 1.2)
    return model.eval()


def random_open_clip(model_config: dict[str, Any], seed: int = 0) -> Any:
    """Returns OpenCLIP's model of a config's `model_cfg`."""
    torch.manual_seed(seed)
    config = {key: value for key, value in model_config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if model_config.get("custom_text") else open_clip.CLIP
    return vary(kind(**config))


def random_transformers(config: dict[str, Any], seed: int = 0) -> Any:
    """Returns transformers' model of a config.json."""
    torch.manual_seed(seed)
    classes = {
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
        "metaclip_2": (transformers.MetaClip2Config, transformers.MetaClip2Model),
    }
    config_class, model_class = classes[config["model_type"]]
    return vary(model_class(config_class.from_dict(config)))


def load(directory: Path) -> tuple[Any, Preprocess]:
    """Returns the family's own model and preparation of photos from a checkpoint's folder."""
    if (directory / "open_clip_config.json").is_file():
        model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{directory}")
        return model.eval(), lambda photo: prepare(photo).numpy().transpose(1, 2, 0)
    model = transformers.AutoModel.from_pretrained(directory)
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    return (
        model.eval(),
        lambda photo: processor(photo, return_tensors="np").pixel_values[0].transpose(1, 2, 0),
    )


def features(model: Any, pixels: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and text features, in the model's type."""
    images = torch.tensor(pixels.transpose(0, 3, 1, 2)).to(model.logit_scale.dtype)
    texts = torch.tensor(ids.astype(np.int64))
    with torch.no_grad():
        if hasattr(model, "encode_image"):
            image, text = model.encode_image(images), model.encode_text(texts)
        else:
            image = model.get_image_features(pixel_values=images).pooler_output
            text = model.get_text_features(input_ids=texts).pooler_output
    return image.numpy(), text.numpy()
