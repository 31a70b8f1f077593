"""Features of the few-shot images that several methods and folds read, computed once."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from fgvpl_jax.clip import CLIP, FrozenEncoder
from fgvpl_jax.data import Batch, ImageCache, Split, in_rows
from fgvpl_jax.training.few_shot_inputs import gather
from fgvpl_jax.training.inputs import EXTRACTION_BATCH_SIZE, FeatureInputs, feature_batch
from fgvpl_jax.training.mesh import batch_size_for
from fgvpl_jax.training.processes import slowest


class SharedFeatures(FeatureInputs):
    """Supplies features of the few-shot images, and of any part of them, from memory.

    A part gets the rows of the whole: an image is augmented the same way in every fold.

    Args:
        clip: The backbone.
        seed: Seed of the run.
        image_cache: Cache whose folder keeps the features as well; None keeps no features there.
        mesh: Devices.
        support: The support images.
        validation: The validation images, all of them readable; None without any.
        max_bytes: Bytes that augmented features may take.
        encoder: Encoder of the features; None for plain CLIP's image encoder.
    """

    def __init__(
        self,
        clip: CLIP,
        seed: int,
        image_cache: ImageCache | None,
        mesh: Mesh,
        *,
        support: Split,
        validation: Split | None,
        max_bytes: int,
        encoder: FrozenEncoder | None = None,
    ):
        super().__init__(clip, seed, image_cache, mesh, encoder)
        self._with_encoder = partial(
            SharedFeatures,
            *(clip, seed, image_cache, mesh),
            support=support,
            validation=validation,
            max_bytes=max_bytes,
        )
        self._by_settings = {repr((encoder or clip.image_encoder).settings): self}
        wholes = [support] if validation is None else [support, validation]
        self._wholes = [(whole, {key: i for i, key in enumerate(whole.keys)}) for whole in wholes]
        self._plain: dict[Split, Float32[np.ndarray, "N e"]] = {}
        self._passes: dict[int, Float32[np.ndarray, "s e"]] = {}
        self._most_passes = max_bytes // (len(support) * self._record.itemsize)

    def by(self, encoder: FrozenEncoder) -> "SharedFeatures":
        """Returns the features of the same images by another encoder, kept as long as these."""
        name = repr(encoder.settings)
        if name not in self._by_settings:
            self._by_settings[name] = self._with_encoder(encoder=encoder)
        return self._by_settings[name]

    def encoding_seconds(self, epochs: int) -> float:
        """Predicts how long the first augmented passes that are not in memory will take.

        If no pass was encoded so far, because files of an earlier run had those that were read, the
        last two tell whether files have the others too. The first of them compiles.
        """
        if not self.pass_seconds:
            for epoch in self._missing(epochs)[-2:]:
                self._augmented(self._wholes[0][0], epoch)
        return len(self._missing(epochs)) * self.pass_seconds

    def _missing(self, epochs: int) -> list[int]:
        return [epoch for epoch in range(epochs) if epoch not in self._passes]

    def evaluation(self, split: Split, batch_size: int, *, strict: bool = False) -> Iterator[Batch]:
        """Returns all images in order; see `Inputs.evaluation`."""
        found = self._find(split)
        if found is not None and (whole := found[0]) not in self._plain:
            size = batch_size_for(self.mesh, EXTRACTION_BATCH_SIZE, len(whole))
            self._plain[whole] = gather(super().evaluation(whole, size, strict=True)).inputs
        return super().evaluation(split, batch_size, strict=strict)

    def _evaluation(self, split: Split, batch_size: int, *, strict: bool) -> Iterator[Batch]:
        found = self._find(split)
        if found is None or found[0] not in self._plain:
            yield from super()._evaluation(split, batch_size, strict=strict)
            return
        whole, places = found
        features = self._plain[whole][places]
        for batch in in_rows(np.arange(len(split)), batch_size):
            yield feature_batch(features, split.labels, batch)

    def _augmented(self, split: Split, epoch: int) -> Float32[np.ndarray, "s e"]:
        found = self._find(split)
        if found is None or found[0] is not self._wholes[0][0]:
            return super()._augmented(split, epoch)
        support, places = found
        features = self._passes.get(epoch)
        if features is None:
            features = super()._augmented(support, epoch)
            self.pass_seconds = slowest(self.pass_seconds)
            if len(self._passes) < self._most_passes:
                self._passes[epoch] = features
        return features[places]

    def _find(self, split: Split) -> tuple[Split, Sequence[int] | Int[np.ndarray, "n"]] | None:
        """Returns the whole that a split is part of, and its rows there; None for other splits."""
        for whole, rows in self._wholes:
            if split.root == whole.root and all(key in rows for key in split.keys):
                return whole, np.array([rows[key] for key in split.keys], np.int64)
        return None
