"""Kernel ridge regression of the labels, without zero-shot CLIP."""

from jaxtyping import Array, Float

from fgvpl_jax.methods.kernel_ridge import KernelRidge


class PlainKernelRidge(KernelRidge):
    """Logits = 10 · K(f, keys) A, where A is fitted to one-hot labels; reads no class name."""

    name = "kernel_ridge_plain"
    title = "Kernel ridge, plain"
    adds_to_zero_shot = False

    def contributions(
        self, features: Float[Array, "b e"], support: None
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the regression's term."""
        return {"image": super().contributions(features, support)["image_cache"]}
