"""Draws attention maps and object masks of a few photos while a model is being trained."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from fgvpl_jax.displays.overlay import heat_layer, laid_over, with_outline
from fgvpl_jax.methods import Method
from fgvpl_jax.training import split_model

SIDE = 160  # pixels of each square of a picture


class MaskPictures:
    """A few photos with their attention maps and object masks, under changing parameters.

    Args:
        model: Model that is trained.
        squares: Parts of the photos that the model sees, one per row of a picture.
        crops: The same photos as the model reads them, on the host.
        grid: Rows and columns of patches (gh, gw).
    """

    def __init__(
        self,
        model: Method,
        squares: Sequence[Image.Image],
        crops: UInt8[np.ndarray, "b H W 3"],
        grid: tuple[int, int],
    ):
        self._squares = squares
        self._crops = crops
        self._grid = grid
        graphdef, _, self._frozen = split_model(model)

        @jax.jit
        def maps_and_masks(
            trainable: nnx.State, frozen: nnx.State, crops: UInt8[Array, "b H W 3"]
        ) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
            features = nnx.merge(graphdef, trainable, frozen).features(crops)
            return features.attention_map, features.object_mask

        self._maps_and_masks = maps_and_masks

    def draw(self, trainable: nnx.State) -> UInt8[np.ndarray, "H W 3"]:
        """Draws one row per photo: the photo, its attention map, the outline of its object."""
        # From the host: the parameters are on all devices of the run, this program is on one.
        on_host = jax.device_get(trainable)
        maps, masks = jax.device_get(self._maps_and_masks(on_host, self._frozen, self._crops))
        sheet = Image.new("RGB", (3 * SIDE, len(self._squares) * SIDE))
        for row, square in enumerate(self._squares):
            panels = (
                square,
                laid_over(square, heat_layer(maps[row].reshape(self._grid))),
                with_outline(square, masks[row].reshape(self._grid)),
            )
            for column, panel in enumerate(panels):
                sheet.paste(panel.resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
        return np.asarray(sheet)
