"""The service under page and endpoint: it predicts photos of many users in shared batches."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from jaxtyping import Float, UInt8
from PIL import Image

from fgvpl_jax.data import UnreadableImage, decode_image
from fgvpl_jax.data.images import FORMATS
from fgvpl_jax.displays.overlay import PANEL, centred_square, seen_square
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.evidence import BATCH_SIZE as EVIDENCE_BATCH
from fgvpl_jax.inference.evidence import ClassEvidence
from fgvpl_jax.inference.predictions import Prediction
from fgvpl_jax.inference.programs import padded_batch
from fgvpl_jax.inference.regions import Region, regions_of, threshold_of
from fgvpl_jax.serving.data_address import thumbnail_of
from fgvpl_jax.serving.micro_batches import MicroBatcher, Overloaded

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
# Long enough for photos that are being decoded in parallel.
WAIT_SECONDS = 0.004


class Refused(UserError):
    """Raised for a photo that is not accepted.

    Attributes:
        status: HTTP status of the response.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Limits on the clients' requests.

    Attributes:
        photo_bytes: Largest size of one file.
        photo_pixels: Largest width times height, read from the header before decoding.
        request_bytes: Largest size of all files of one upload to the page.
        photos_at_once: Largest number of files that the page takes at once.
        requests_per_minute: Number of requests a minute from one address; as many may arrive
            together.
        waiting: Number of photos of all clients that may wait, for a decoder or for the device.
    """

    photo_bytes: int = 20_000_000
    photo_pixels: int = 50_000_000
    request_bytes: int = 200_000_000
    photos_at_once: int = 100
    requests_per_minute: int = 600
    waiting: int = 256


@dataclass(frozen=True)
class PhotoRequest:
    """One photo for the device.

    Attributes:
        crop: The crop that the model sees.
        name: Name of the photo's file.
        top_k: Number of classes to return.
        changes: The classes that can be predicted.
    """

    crop: UInt8[np.ndarray, "H W 3"]
    name: str
    top_k: int
    changes: ClassChanges


@dataclass(frozen=True)
class PhotoResponse:
    """The device's result for one photo.

    Attributes:
        prediction: The prediction.
        kept: Image and object feature as a cache stores them; None for a method without a cache.
    """

    prediction: Prediction
    kept: tuple[Float[np.ndarray, "e"], Float[np.ndarray, "e"] | None] | None


@dataclass(frozen=True)
class RecognisedPhoto:
    """A photo with its result.

    Attributes:
        crop: The crop that the model saw.
        square: Picture of the part that the model saw; None unless the caller wanted it.
        response: The device's result.
    """

    crop: UInt8[np.ndarray, "H W 3"]
    square: Image.Image | None
    response: PhotoResponse


class Service:
    """A classifier that serves many users at once.

    Args:
        classifier: A trained run.
        limits: Limits on the clients' requests.
        batch_sizes: Sizes of the device's batches, in ascending order; with only 1, no photo waits
            for others.
    """

    def __init__(
        self, classifier: Classifier, limits: Limits, batch_sizes: Sequence[int] = BATCH_SIZES
    ):
        self.classifier = classifier
        self.limits = limits
        self._batch_sizes = batch_sizes
        self._warm_up()
        self._num_photos = 0  # photos in memory
        self._num_decoding = 0  # photos of these that are being decoded
        self._batches = MicroBatcher(
            self._recognise_batch,
            max_batch_size=batch_sizes[-1],
            wait_seconds=WAIT_SECONDS,
            max_waiting=limits.waiting,
            num_incoming=lambda: self._num_decoding,
        )
        self._decoders = CapacityLimiter(os.cpu_count() or 1)
        self._one_at_a_time = asyncio.Lock()  # of the work that takes many predictions
        self._one_change = asyncio.Lock()  # else a class that is being added undoes other changes
        self.thumbnail = lru_cache(1024)(self._thumbnail)

    async def recognise(
        self,
        data: bytes,
        name: str,
        top_k: int,
        changes: ClassChanges | None = None,
        *,
        with_square: bool = False,
    ) -> RecognisedPhoto:
        """Decodes a photo and waits for its prediction.

        Args:
            data: Bytes of the photo's file.
            name: Name of the photo.
            top_k: Number of classes to return.
            changes: The classes as a user changed them; None for the classifier's own.
            with_square: Whether to return the square that the model saw as a picture, too.
        Raises:
            Refused: If the photo is not accepted.
            Overloaded: If too many photos wait.
        """
        with self._one_more_photo():
            self._num_decoding += 1
            try:
                crop, square = await to_thread.run_sync(
                    self._read, data, name, with_square, limiter=self._decoders
                )
            finally:
                self._num_decoding -= 1
            request = PhotoRequest(crop, name, top_k, changes or self.classifier.changes)
            response = await asyncio.wrap_future(self._batches.submit(request))
            return RecognisedPhoto(crop, square, response)

    async def regions(
        self, data: bytes, name: str, top_k: int, changes: ClassChanges | None = None
    ) -> tuple[Region, ...]:
        """Waits for the regions of a photo that `recognise` accepted; see its arguments.

        Raises:
            UserError: If there are no regions; see `regions_of`.
            Overloaded: If too many photos wait.
        """
        changes = changes or self.classifier.changes
        return await self._alone(
            lambda: regions_of(self.classifier, decode_image(data, name), top_k, changes)
        )

    async def evidence(
        self, crop: UInt8[np.ndarray, "H W 3"], class_name: str, changes: ClassChanges | None
    ) -> ClassEvidence:
        """Waits for `Classifier.evidence_in`, about a hundred predictions; see `regions`."""
        return await self._alone(lambda: self.classifier.evidence_in(crop, class_name, changes))

    async def _alone(self, work: Callable[[], Any]) -> Any:
        with self._one_more_photo():
            async with self._one_at_a_time:
                return await to_thread.run_sync(work)

    @contextmanager
    def _one_more_photo(self) -> Iterator[None]:
        if self._num_photos >= self.limits.waiting:
            raise Overloaded("too many photos wait: try again in a moment")
        self._num_photos += 1
        try:
            yield
        finally:
            self._num_photos -= 1

    async def with_class(
        self, changes: ClassChanges | None, raw_name: str, photos: Sequence[tuple[str, bytes]]
    ) -> tuple[ClassChanges, list[Image.Image]]:
        """Returns the changed classes with one more class, and the squares of its photos.

        Args:
            changes: The classes as the user changed them before; None for the classifier's own.
            raw_name: Name of the new class, as the user wrote it.
            photos: Name and bytes of each file.
        Raises:
            UserError: If the name or the photos cannot be used, or the method has no visual cache.
            Overloaded: If too many photos wait.
        """
        changes = changes or self.classifier.changes
        name = self.classifier.checked_class(changes, raw_name, len(photos))
        recognised = await asyncio.gather(
            *(self.recognise(data, file, 1, with_square=True) for file, data in photos)
        )
        text = await to_thread.run_sync(self.classifier.text_features_of, name)
        kept = []
        for (file, _), photo in zip(photos, recognised, strict=True):
            assert photo.response.kept is not None
            kept.append((file, *photo.response.kept))
        squares = [photo.square for photo in recognised if photo.square is not None]
        return changes.with_class(name, text, kept), squares

    async def add_class(self, raw_name: str, photos: Sequence[tuple[str, bytes]]) -> None:
        """Adds a class for all users; see `with_class`."""
        async with self._one_change:
            self.classifier.changes, _ = await self.with_class(None, raw_name, photos)

    async def remove_class(self, name: str) -> None:
        """Removes a class for all users; see `Classifier.remove_class`."""
        async with self._one_change:
            self.classifier.remove_class(name)

    async def rename_class(self, name: str, new_name: str) -> None:
        """Renames a class for all users; see `Classifier.rename_class`."""
        async with self._one_change:
            self.classifier.rename_class(name, new_name)

    def close(self) -> None:
        """Processes the photos that wait, then ends."""
        self._batches.close()

    def _read(
        self, data: bytes, name: str, with_square: bool
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Image.Image | None]:
        check_photo(data, name, self.limits)
        try:
            photo = decode_image(data, name)
        except UnreadableImage as error:
            raise Refused(422, str(error)) from error
        square = None
        if with_square:
            box = self.classifier.clip.image_processor.seen_box(*photo.size)
            # The browser enlarges a small photo; that would take longer here than the JPEG.
            square = seen_square(photo, box, min(PANEL, max(photo.size)))
        return self.classifier.crop(photo, name), square

    def _thumbnail(self, place: int) -> str | None:
        """Returns the thumbnail of a training photo; None if the photo no longer exists."""
        try:
            return thumbnail_of(centred_square(self.classifier.support.image(place)))
        except UnreadableImage:
            return None

    def _recognise_batch(self, requests: Sequence[PhotoRequest]) -> list[PhotoResponse]:
        inference = self.classifier.inference
        size = next(size for size in self._batch_sizes if size >= len(requests))
        features, kept = inference.encode(padded_batch([r.crop for r in requests], size))
        kept_rows = None if kept is None else [None if x is None else np.asarray(x) for x in kept]
        # The head is cheap compared with the encoder, so it sees the whole batch once for each
        # user's classes.
        by_changes = {
            id(r.changes): inference.recognise(features, r.changes.on_device)
            for r in {id(r.changes): r for r in requests}.values()
        }
        return [
            PhotoResponse(
                self.classifier.prediction(
                    by_changes[id(r.changes)], row, r.name, r.top_k, r.changes
                ),
                None
                if kept_rows is None
                else tuple(None if x is None else x[row] for x in kept_rows),  # type: ignore[arg-type]
            )
            for row, r in enumerate(requests)
        ]

    def _warm_up(self) -> None:
        """Compiles every program that a request may need, so that the first user need not wait."""
        inference, clip = self.classifier.inference, self.classifier.clip
        if self.classifier.finds_objects:
            threshold_of(np.zeros(clip.vision.grid, np.float32))
        names = self.classifier.changes.trained_names
        removed = ClassChanges((*names[:-1], None)).on_device
        added = None
        batches = [(size, True) for size in self._batch_sizes] + [(EVIDENCE_BATCH, False)]
        for size, scored in batches:
            black = np.zeros((size, clip.image_size, clip.image_size, 3), np.uint8)
            features, kept = inference.encode(black, scored=scored)
            inference.recognise(features)
            inference.recognise(features, removed)
            if kept is None:
                continue
            if added is None:
                text = self.classifier.text_features_of("anything")
                image, object_ = (None if x is None else np.asarray(x[0]) for x in kept)
                assert image is not None  # every cache has image features
                added = ClassChanges(names).with_class("anything", text, [("", image, object_)])
            inference.recognise(features, added.on_device)


def check_photo(data: bytes, name: str, limits: Limits) -> None:
    """Checks size, type and header of a file, before anything is decoded.

    Raises:
        Refused: With status 413 if the file is too large, 415 if it is no image that can be read,
            422 if it is damaged.
    """
    if len(data) > limits.photo_bytes:
        raise Refused(
            413,
            f"{name} has {len(data):,} bytes, more than {limits.photo_bytes:,}: make it smaller",
        )
    try:
        with Image.open(BytesIO(data), formats=sorted(FORMATS)) as image:
            width, height = image.size
    except Image.UnidentifiedImageError as error:
        raise Refused(
            415, f"{name} is not an image in a supported format: {', '.join(sorted(FORMATS))}"
        ) from error
    except Image.DecompressionBombError:
        width = height = limits.photo_pixels
    except Exception as error:  # decoders raise errors of any type on damaged files
        raise Refused(422, f"{name}: {error}") from error
    if width * height > limits.photo_pixels:
        raise Refused(
            413,
            f"{name} has more than {limits.photo_pixels:,} pixels: make it smaller",
        )
