"""FG-VPL: fine-grained visual prompt learning of vision-language models, in JAX and Flax.

Each public name imports its module when it is first used, so that `import fgvpl_jax` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fgvpl_jax.version import __version__

if TYPE_CHECKING:
    from fgvpl_jax.clip import load_clip
    from fgvpl_jax.inference.classifier import load_classifier
    from fgvpl_jax.inference.fit import fit
    from fgvpl_jax.inference.multi_label import fit_multi_label, load_multi_label
    from fgvpl_jax.recognition import TwoPathwayHead, VisualCache
    from fgvpl_jax.visual_prompt import (
        FGImageEncoder,
        attention_map,
        largest_component,
        object_mask,
        otsu_threshold,
    )

_MODULES = {
    "fit": "fgvpl_jax.inference.fit",
    "fit_multi_label": "fgvpl_jax.inference.multi_label",
    "load_multi_label": "fgvpl_jax.inference.multi_label",
    "load_classifier": "fgvpl_jax.inference.classifier",
    "load_clip": "fgvpl_jax.clip",
    "attention_map": "fgvpl_jax.visual_prompt",
    "otsu_threshold": "fgvpl_jax.visual_prompt",
    "largest_component": "fgvpl_jax.visual_prompt",
    "object_mask": "fgvpl_jax.visual_prompt",
    "FGImageEncoder": "fgvpl_jax.visual_prompt",
    "VisualCache": "fgvpl_jax.recognition",
    "TwoPathwayHead": "fgvpl_jax.recognition",
}

__all__ = [
    "FGImageEncoder",
    "TwoPathwayHead",
    "VisualCache",
    "__version__",
    "attention_map",
    "fit",
    "fit_multi_label",
    "largest_component",
    "load_classifier",
    "load_clip",
    "load_multi_label",
    "object_mask",
    "otsu_threshold",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
