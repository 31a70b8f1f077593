"""Supplies the tokens that enter the prompt's layer, instead of the photos.

The layers below the prompt are frozen, so their tokens are computed once for all epochs and runs.
They are kept in the image cache's folder by the rules of frozen features, and memory-mapped.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import (
    PADDING,
    Batch,
    ImageCache,
    Split,
    epoch_rows,
    eval_batches,
    in_rows,
    share_batches,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.prompted import PromptedMethod
from fgvpl_jax.training.inputs import (
    EXTRACTION_BATCH_SIZE,
    PixelInputs,
    backbone_identity,
    one_behind,
)
from fgvpl_jax.training.mesh import batch_size_for, replicate, split_batch
from fgvpl_jax.training.microbatches import images_at_once, in_parts
from fgvpl_jax.training.processes import process_share
from fgvpl_jax.visual_prompt import TokensBelow

Places = Int[np.ndarray, "n"]

TOKEN_FORMAT = 1  # increases when records, or the computation of tokens, change
# Tokens of this many images are computed in one call.
TOKEN_BATCH_SIZE = EXTRACTION_BATCH_SIZE // 4


@partial(jax.jit, static_argnums=(0, 1))
def below_prompt(
    graphdef: nnx.GraphDef, size: int, state: nnx.State, images: UInt8[Array, "b H W 3"]
) -> TokensBelow:
    """Returns what a model's layers below the prompt compute of pixels, for `size` at a time."""
    return in_parts(nnx.merge(graphdef, state).below_prompt, images, size)


class TokenInputs:
    """Supplies tokens of the few-shot images.

    Epoch e has the crops and the order of epoch e mod `num_passes`, so that the tokens of that many
    passes are all that training reads. A part of the support images, such as a fold's training
    images, gets the rows of the whole: an image is augmented the same way in every fold.

    Each of several processes computes and keeps the tokens of its own rows, which differ between
    folds, on its own devices.

    Args:
        model: Model whose encoder reads the tokens.
        support: All support images.
        clip: The model's backbone.
        seed: Seed of the run.
        image_cache: Cache whose folder keeps the tokens as well.
        num_passes: Number of different augmented passes over the images.
        max_bytes: Memory that tokens may take that no file keeps; beyond it, they are computed
            again for every epoch.
        mesh: Devices.
    """

    def __init__(
        self,
        model: PromptedMethod,
        support: Split,
        clip: CLIP,
        seed: int,
        image_cache: ImageCache | None,
        *,
        num_passes: int,
        max_bytes: int,
        mesh: Mesh,
    ):
        self.share = process_share()
        self.pixels = PixelInputs(clip, seed, image_cache, self.share)
        self.support = support
        self._rows = {key: row for row, key in enumerate(support.keys)}
        self.seed = seed
        self.image_cache = image_cache
        self.num_passes = num_passes
        self.mesh = mesh
        self._max_bytes = max_bytes
        graphdef, state = nnx.split(model)
        self._tokens: Callable[[Array], TokensBelow] = partial(
            below_prompt, graphdef, images_at_once(clip.vision), replicate(mesh.local_mesh, state)
        )
        size = clip.image_size
        shapes = jax.eval_shape(self._tokens, jax.ShapeDtypeStruct((1, size, size, 3), np.uint8))
        self._record = np.dtype(
            [
                (name, shape.dtype, shape.shape[1:])
                for name, shape in shapes._asdict().items()
                if shape is not None
            ]
        )
        encoder = model.encoder
        self._identity = [
            *backbone_identity(clip),
            *(encoder.layers_below, encoder.map_name, str(encoder.compute_dtype)),
        ]
        self._in_memory: dict[int | None, tuple[Places, np.ndarray]] = {}

    def epoch(
        self,
        split: Split,
        batch_size: int,
        epoch: int,
        *,
        first_batch: int = 0,
        num_rows: int | None = None,
    ) -> Iterator[Batch]:
        """Returns one augmented epoch of support images; see `Inputs.epoch`.

        Where nothing keeps tokens, images are augmented by their place in the split.
        """
        number = epoch % self.num_passes
        rows = epoch_rows(len(split), batch_size, seed=self.seed, epoch=number, num_rows=num_rows)
        ours = rows[:, self.share.of(rows.shape[1])]
        order = epoch_rows(len(self.support), len(self.support), seed=self.seed, epoch=number)[0]
        if self.share.count > 1:
            order = self._places(split)[ours[ours != PADDING]]
        kept = self._kept(number, order)
        if kept is None:
            return self._computed(self.pixels.augmented(split, ours[first_batch:], number))
        return self._batches(kept, order, split, ours[first_batch:])

    def evaluation(self, split: Split, batch_size: int, *, strict: bool = False) -> Iterator[Batch]:
        """Returns support images in order; see `Inputs.evaluation`. All must be readable."""

        def padding(size: int) -> Batch:
            nothing = np.empty(0, self._record), np.empty(0, np.int64)
            (batch,) = self._batches(*nothing, split, np.full((1, size), PADDING))
            return batch

        return share_batches(split, batch_size, self.share, self._evaluation, padding=padding)

    def _evaluation(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Returns the images of this process."""
        whole = np.arange(len(self.support))
        order = whole if self.share.count == 1 else self._places(split)
        kept = self._kept(None, order)
        if kept is None:
            return self._computed(self._plain(split, batch_size))
        return self._batches(kept, order, split, in_rows(np.arange(len(split)), batch_size))

    def _batches(
        self, kept: np.ndarray, order: Places, split: Split, rows: Int[np.ndarray, "steps b"]
    ) -> Iterator[Batch]:
        """Returns the images at these rows of a split, whose records have this order."""
        records = np.zeros(len(self.support), np.int64)
        records[order] = np.arange(len(order))
        places = records[self._places(split)]
        return (_token_batch(kept, places, split.labels, row) for row in rows)

    def _places(self, split: Split) -> Int[np.ndarray, "n"]:
        """Returns the places of a split's images among the support images."""
        return np.array([self._rows[key] for key in split.keys], np.int64)

    def _kept(self, number: int | None, order: Places) -> np.ndarray | None:
        """Returns the records of a pass, computed at first; None if nothing can keep them.

        Args:
            number: Number of the augmented pass; None for the evaluation transform.
            order: Places of the images, in the order in which they are read and recorded.
        """
        known = self._in_memory.get(number)
        if known is not None and np.array_equal(known[0], order):
            return known[1]
        batches = partial(self._pass, number, order)
        images = self._images(number)
        if self.image_cache is not None and images is not None and len(order):
            which = [] if number is None else ["augmented", self.seed, number]
            ours = [] if self.share.count == 1 else [order.tolist()]
            identity = ["tokens", TOKEN_FORMAT, *self._identity, *images, *which, *ours]
            entry = self.image_cache.place(identity, self._record, len(order))
            if (kept := entry.read_checked()) is None:
                with entry.recording() as append:
                    for columns in batches():
                        append(*columns)
                kept = entry.read()
            if kept is not None:
                self._in_memory[number] = order, kept  # a memory map
                return kept
            self.image_cache = None  # it has no room, so later passes do not try again
        if len(order) * self._record.itemsize * (1 + self.num_passes) > self._max_bytes:
            return None
        kept = np.empty(len(order), self._record)
        first = 0
        for columns in batches():
            last = first + len(columns[0])
            for name, column in zip(self._record.names or (), columns, strict=True):
                kept[name][first:last] = column
            first = last
        self._in_memory[number] = order, kept
        return kept

    def _images(self, number: int | None) -> list[Any] | None:
        """Returns the identity of the images that a pass reads."""
        if self.image_cache is None:
            return None
        pixels = self.pixels
        identity = pixels.plain_identity if number is None else pixels.augmented_identity
        return identity(self.support)

    def _pass(self, number: int | None, order: Places) -> Iterator[list[np.ndarray]]:
        """Yields the columns of the records of a pass."""
        size = batch_size_for(self.mesh, TOKEN_BATCH_SIZE, len(self.support)) // self.share.count
        pixels = (
            self._plain(self.support.select(order.tolist()), size)
            if number is None
            else self.pixels.augmented(self.support, in_rows(order, size), number)
        )
        for batch in self._computed(pixels):
            real = batch.indices != PADDING
            columns = [column[real] for column in batch.inputs if column is not None]
            check_range(columns[0])
            yield columns

    def _plain(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Returns all pixels of a split under the evaluation transform."""
        transform, cache = self.pixels.transform, self.pixels.image_cache
        return eval_batches(split, batch_size, transform=transform, strict=True, cache=cache)

    def _computed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        dispatched = (
            (batch, self._tokens(split_batch(self.mesh.local_mesh, batch.inputs)))
            for batch in batches
        )
        for batch, tokens in one_behind(dispatched):
            yield batch._replace(inputs=jax.tree.map(np.asarray, tokens))


def check_range(tokens: np.ndarray) -> None:
    """Refuses a backbone whose tokens exceed the range of float16.

    Raises:
        UserError: If a token is not finite.
    """
    if not np.isfinite(tokens).all():
        raise UserError(
            "a token of this backbone is beyond the largest float16 number, in which tokens are "
            "kept: set prompt_layer to 1"
        )


def _token_batch(
    kept: np.ndarray,
    places: Int[np.ndarray, "s"],
    labels: Int[np.ndarray, "s"],
    row: Int[np.ndarray, "b"],
) -> Batch:
    """Returns the images of a row, whose records are at these places; rows of padding are 0."""
    real = row != PADDING

    def column(name: str) -> np.ndarray:
        values = np.zeros((len(row), *kept.dtype[name].shape), kept.dtype[name].base)
        values[real] = kept[name][places[row[real]]]
        return values

    decided = "significance" in (kept.dtype.names or ())
    return Batch(
        TokensBelow(column("tokens"), column("significance") if decided else None),
        np.where(real, labels[row], 0).astype(np.int32),
        real.astype(np.float32),
        row.astype(np.int32),
        (),
    )
