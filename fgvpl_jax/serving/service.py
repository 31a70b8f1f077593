"""What page and endpoint both do: bytes of a photo in, a prediction out, batched with others'."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from anyio import CapacityLimiter, to_thread
from jaxtyping import Float, UInt8
from PIL import Image

from fgvpl_jax.data import UnreadableImage, decode_image
from fgvpl_jax.data.images import FORMATS
from fgvpl_jax.displays.overlay import centred_square
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.added_classes import Extension
from fgvpl_jax.inference.classifier import Classifier, Prediction
from fgvpl_jax.inference.programs import padded_batch
from fgvpl_jax.serving.micro_batches import MicroBatcher, Overloaded

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
# Long enough for photos that are being decoded side by side.
WAIT_SECONDS = 0.004


class Refused(UserError):
    """A photo that is not read.

    Attributes:
        status: The HTTP status that says so.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        photo_bytes: Of one file.
        photo_pixels: Width times height, told by its header before it is decoded.
        request_bytes: Of all files of one upload to the page.
        photos_at_once: Files of one batch of the page.
        requests_per_minute: Of one address; as many may come at once.
        waiting: Photos of all clients that may wait, for a decoder or for the device.
    """

    photo_bytes: int = 20_000_000
    photo_pixels: int = 50_000_000
    request_bytes: int = 200_000_000
    photos_at_once: int = 100
    requests_per_minute: int = 600
    waiting: int = 256


@dataclass(frozen=True)
class Question:
    """One photo for the device.

    Attributes:
        crop: What the model sees of it.
        name: Of its file.
        top_k: Classes to name.
        extension: Classes of this user beside the trained ones; None without.
    """

    crop: UInt8[np.ndarray, "H W 3"]
    name: str
    top_k: int
    extension: Extension | None


@dataclass(frozen=True)
class Answer:
    """What the device says.

    Attributes:
        prediction: In words.
        kept: Image and object feature as a cache keeps them; None for a method without a cache.
    """

    prediction: Prediction
    kept: tuple[Float[np.ndarray, "e"], Float[np.ndarray, "e"] | None] | None


@dataclass(frozen=True)
class Seen:
    """A photo with its answer.

    Attributes:
        square: Its centred square, which the model saw, if it was asked for.
        answer: What the device says.
    """

    square: Image.Image | None
    answer: Answer


class Service:
    """A classifier for many users at once."""

    def __init__(
        self, classifier: Classifier, limits: Limits, batch_sizes: Sequence[int] = BATCH_SIZES
    ):
        """Compiles what will be needed, so that the first user does not wait for it.

        Args:
            classifier: A trained run.
            limits: Of every client.
            batch_sizes: From small to large; with 1 alone photos wait for nobody.
        """
        self.classifier = classifier
        self.limits = limits
        self._batch_sizes = batch_sizes
        self._warm_up()
        self._asked = 0  # photos in memory
        self._on_their_way = 0  # of them those that are being decoded
        self._batches = MicroBatcher(
            self._answer_all,
            largest=batch_sizes[-1],
            wait_seconds=WAIT_SECONDS,
            most_waiting=limits.waiting,
            on_their_way=lambda: self._on_their_way,
        )
        self._decoders = CapacityLimiter(os.cpu_count() or 1)
        self.thumbnail = lru_cache(1024)(self._thumbnail)

    async def ask(
        self,
        data: bytes,
        name: str,
        top_k: int,
        extension: Extension | None = None,
        *,
        with_square: bool = False,
    ) -> Seen:
        """Reads a photo and waits for its answer.

        Args:
            data: Of its file.
            name: What to call it.
            top_k: Classes to name.
            extension: Classes beside the trained ones.
            with_square: Whether what the model saw is wanted too, as a picture.
        Raises:
            Refused: If it is not read.
            Overloaded: If too many wait.
        """
        if self._asked >= self.limits.waiting:
            raise Overloaded("too many photos wait: try again in a moment")
        self._asked += 1
        self._on_their_way += 1
        try:
            try:
                crop, square = await to_thread.run_sync(
                    self._read, data, name, with_square, limiter=self._decoders
                )
            finally:
                self._on_their_way -= 1
            question = Question(crop, name, top_k, extension)
            return Seen(square, await asyncio.wrap_future(self._batches.submit(question)))
        finally:
            self._asked -= 1

    async def with_class(
        self, extension: Extension | None, raw_name: str, photos: Sequence[tuple[str, bytes]]
    ) -> tuple[Extension, list[Image.Image]]:
        """A classifier's extension by one class more, and its photos' squares.

        Args:
            extension: What the user added before; None without.
            raw_name: Of the class.
            photos: Name and bytes of each file.
        Raises:
            UserError: If name or photos do not do.
            Overloaded: If too many wait.
        """
        extension = extension or Extension(self.classifier.class_names)
        name = extension.check(raw_name, len(photos))
        seen = await asyncio.gather(
            *(self.ask(data, file, 1, with_square=True) for file, data in photos)
        )
        text = await to_thread.run_sync(self.classifier.text_features_of, name)
        kept = []
        for (file, _), one in zip(photos, seen, strict=True):
            assert one.answer.kept is not None
            kept.append((file, *one.answer.kept))
        squares = [one.square for one in seen if one.square is not None]
        return extension.with_class(name, text, kept), squares

    def close(self) -> None:
        """Answers what waits, and ends."""
        self._batches.close()

    def _read(
        self, data: bytes, name: str, with_square: bool
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Image.Image | None]:
        check_photo(data, name, self.limits)
        try:
            photo = decode_image(data, name)
        except UnreadableImage as error:
            raise Refused(422, str(error)) from error
        square = centred_square(photo) if with_square else None
        return self.classifier.crop(photo, name), square

    def _thumbnail(self, place: int) -> Image.Image | None:
        """The square of a training photo; None where it is gone."""
        try:
            return centred_square(self.classifier.support.image(place)).resize((112, 112))
        except UnreadableImage:
            return None

    def _answer_all(self, questions: Sequence[Question]) -> list[Answer]:
        inference = self.classifier.inference
        size = next(size for size in self._batch_sizes if size >= len(questions))
        features, kept = inference.encode(padded_batch([q.crop for q in questions], size))
        kept_rows = None if kept is None else [None if x is None else np.asarray(x) for x in kept]
        # The head is cheap beside the encoder: for every extension it sees the whole batch.
        by_extension = {
            id(q.extension): inference.recognise(
                features, None if q.extension is None else q.extension.on_device
            )
            for q in {id(q.extension): q for q in questions}.values()
        }
        return [
            Answer(
                self.classifier.prediction(
                    by_extension[id(q.extension)], row, q.name, q.top_k, q.extension
                ),
                None
                if kept_rows is None
                else tuple(None if x is None else x[row] for x in kept_rows),  # type: ignore[arg-type]
            )
            for row, q in enumerate(questions)
        ]

    def _warm_up(self) -> None:
        inference, side = self.classifier.inference, self.classifier.clip.image_size
        extension = None
        for size in self._batch_sizes:
            features, kept = inference.encode(np.zeros((size, side, side, 3), np.uint8))
            inference.recognise(features)
            if kept is None:
                continue
            if extension is None:
                text = self.classifier.text_features_of("anything")
                image, object_ = (None if x is None else np.asarray(x[0]) for x in kept)
                assert image is not None  # every cache has it
                empty = Extension(self.classifier.class_names)
                extension = empty.with_class("anything", text, [("", image, object_)])
            inference.recognise(features, extension.on_device)


def check_photo(data: bytes, name: str, limits: Limits) -> None:
    """Looks at size, type and header of a file, before anything is decoded.

    Raises:
        Refused: 413 if it is too large, 415 if it is no image.
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
            415, f"{name} is no image that is read here: {', '.join(sorted(FORMATS))} are"
        ) from error
    except Image.DecompressionBombError:
        width = height = limits.photo_pixels
    except Exception as error:  # decoders of strangers' files raise whatever they like
        raise Refused(422, f"{name}: {error}") from error
    if width * height > limits.photo_pixels:
        raise Refused(
            413,
            f"{name} has more than {limits.photo_pixels:,} pixels: make it smaller",
        )
