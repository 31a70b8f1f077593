"""The methods by their name in the config; each file holds one `Method`.

Tables and figures list the methods in this order.
"""

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.clap import CLAP
from fgvpl_jax.methods.clip_adapter import ClipAdapter
from fgvpl_jax.methods.clip_lora import ClipLoRA
from fgvpl_jax.methods.clip_svd import ClipSVD
from fgvpl_jax.methods.coop import CoOp
from fgvpl_jax.methods.fg_vpl import FGVPL
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.gda import GDA
from fgvpl_jax.methods.gda_pool import GDAPool
from fgvpl_jax.methods.held_out import SELECTION_RULES, LabelledLogits
from fgvpl_jax.methods.interface import Choices, Method, Recipe, Task
from fgvpl_jax.methods.kernel_ridge import KernelRidge
from fgvpl_jax.methods.kernel_ridge_plain import PlainKernelRidge
from fgvpl_jax.methods.linear_probe import LinearProbe
from fgvpl_jax.methods.lp_plus_plus import LPPlusPlus
from fgvpl_jax.methods.prompted import PromptedMethod
from fgvpl_jax.methods.rla import RLA
from fgvpl_jax.methods.svm import SVM
from fgvpl_jax.methods.tar import TAR
from fgvpl_jax.methods.tip_adapter import TipAdapter
from fgvpl_jax.methods.tip_adapter_f import TipAdapterF
from fgvpl_jax.methods.two_stage import TwoStage
from fgvpl_jax.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ZeroShot,
        LinearProbe,
        SVM,
        GDA,
        KernelRidge,
        PlainKernelRidge,
        LPPlusPlus,
        CLAP,
        RLA,
        ClipAdapter,
        CoOp,
        TipAdapter,
        TipAdapterF,
        ClipLoRA,
        ClipSVD,
        TwoStage,
        FVP,
        TAR,
        FGVPL,
        GDAPool,
    )
}

# Value of `config.method` that stands for the best of these methods, or the best mix of them.
AUTO = "auto"

__all__ = [
    "AUTO",
    "FGVPL",
    "METHODS",
    "SELECTION_RULES",
    "Choices",
    "LabelledLogits",
    "Method",
    "PromptedMethod",
    "Recipe",
    "Task",
    "method_named",
]


def method_named(name: str) -> type[Method]:
    """Returns the class of a method.

    Raises:
        UserError: If no method has that name.
    """
    if name not in METHODS:
        raise UserError(f"method is {name!r}: choose one of {', '.join(METHODS)}, {AUTO}")
    return METHODS[name]
