"""Constructor arguments of FG-VPL, FVP and TAR, with the values of the paper."""

from benchmarks.measuring import FG_VPL_SETTINGS

FVP_NAMES = (
    *("num_prompts", "prompt_layer", "attention_map", "connectivity", "object_logit_weight"),
    *("compute_dtype", "rematerialise"),
)
TAR_NAMES = ("text_residual_ratio", "cache_votes", "leave_one_out")
FVP_SETTINGS = {name: FG_VPL_SETTINGS[name] for name in FVP_NAMES}
TAR_SETTINGS = {name: FG_VPL_SETTINGS[name] for name in TAR_NAMES}

__all__ = ["FG_VPL_SETTINGS", "FVP_SETTINGS", "TAR_SETTINGS"]
