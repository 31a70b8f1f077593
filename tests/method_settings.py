"""Constructor arguments of FG-VPL, FVP and TAR, with the values of the paper."""

from typing import Any

from fgvpl_jax import defaults

_ENCODER: dict[str, Any] = {
    "num_prompts": defaults.NUM_PROMPTS,
    "connectivity": defaults.CONNECTIVITY,
    "compute_dtype": None,
    "rematerialise": False,
}
FVP_SETTINGS = _ENCODER | {"object_logit_weight": defaults.OBJECT_LOGIT_WEIGHT}
TAR_SETTINGS: dict[str, Any] = {
    "text_residual_ratio": defaults.TEXT_RESIDUAL_RATIO,
    "leave_one_out": False,
}
FG_VPL_SETTINGS = FVP_SETTINGS | TAR_SETTINGS | {"object_query": defaults.OBJECT_QUERY}
