"""Compares batches cropped on the device with those that the host makes from the same photos."""

import itertools
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fgvpl_jax import load_clip
from fgvpl_jax.data import Split, UnreadableImage, random_crop_and_flip, train_batches
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.training import (
    PixelInputs,
    TrainState,
    batch_sources,
    data_mesh,
    make_train_step,
    replicate,
    split_model,
)
from fgvpl_jax.training import resident as resident_module
from fgvpl_jax.training.augmentation import KERNELS
from fgvpl_jax.training.batch_sources import HostBatches, Pace, ResidentBatches
from fgvpl_jax.training.loop import run_spans
from fgvpl_jax.training.mesh import batch_layout
from fgvpl_jax.training.resident import decode_resident, draw_epoch
from fgvpl_jax.training.train_step import StepBatch, StepMetrics, make_resident_train_step
from fgvpl_jax.variables import to_device
from tests.method_settings import FVP_SETTINGS

SEED, EPOCH, BATCH, CLASSES = 3, 5, 4, 3
SIZES = ((40, 31), (20, 64), (17, 17), (64, 20), (33, 50), (8, 9))
AT_ONCE = 4
OPTIMIZER = adamw(cosine(1e-3, 10), 0.01)  # one object, so that tests share the compiled steps


@pytest.fixture(autouse=True)
def _cropped_in_parts(monkeypatch):
    """Crops at most four rows at once, so that six rows need a whole part and a smaller one."""
    monkeypatch.setattr(resident_module, "CROPPED_AT_ONCE", AT_ONCE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    keys = tuple(f"{number}.png" for number in range(len(SIZES)))
    return Split(folder, keys, np.arange(len(SIZES), dtype=np.int32) % CLASSES)


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


def draw(photos, num_rows=BATCH):
    """Returns the photos on the device, and the crops, labels and weights of an epoch."""
    resident = decode_resident(photos, 10**9, Image.Resampling.BICUBIC)
    drawn = draw_epoch(
        resident.sizes, photos.labels, BATCH, seed=SEED, epoch=EPOCH, num_rows=num_rows
    )
    return resident, drawn


@partial(jax.jit, static_argnames=("size", "mesh", "resample"))
def cropped(crops, canvases, *, size, mesh, resample):
    return crops.pixels(canvases, size=size, mesh=mesh, resample=resample)


def pixels_of(crops, resident, clip, resample=Image.Resampling.BICUBIC):
    size, mesh = clip.image_size, data_mesh()
    return cropped(crops, resident.canvases, size=size, mesh=mesh, resample=resample)


@pytest.mark.parametrize("resample", KERNELS, ids=lambda resample: resample.name)
def test_crops_order_labels_and_padding_equal_those_of_the_host(photos, clip, resample):
    resident, drawn = draw(photos, num_rows=6)
    augment = random_crop_and_flip(size=clip.image_size, resample=resample)
    host = train_batches(photos, BATCH, augment=augment, seed=SEED, epoch=EPOCH, num_rows=6)
    for step, batch in enumerate(host):
        crops, labels, weights = jax.tree.map(lambda rows, i=step: np.asarray(rows)[i], drawn)
        np.testing.assert_array_equal(crops.places, batch.indices)
        np.testing.assert_array_equal(labels, batch.labels)
        np.testing.assert_array_equal(weights, batch.weights)
        pixels = pixels_of(crops, resident, clip, resample)
        real = batch.weights > 0
        difference = np.abs(np.asarray(pixels, int) - batch.inputs)[real]
        assert difference.max() <= 1
    assert step == 1


def test_the_memory_budget_includes_all_canvases_and_working_copies(photos):
    canvases, copies = len(SIZES) * 64 * 64 * 3, AT_ONCE * (1 + 4) * 64 * 64 * 3
    decode = partial(decode_resident, photos, resample=Image.Resampling.BICUBIC)
    assert decode(max_bytes=canvases + copies).canvases.nbytes == canvases
    assert decode(max_bytes=canvases + copies - 1) is None


def test_photos_stay_on_the_host_if_the_device_has_no_such_filter(photos):
    assert decode_resident(photos, 10**9, Image.Resampling.LANCZOS) is None


def test_a_photo_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no photo")
    with pytest.raises(UnreadableImage, match=r"a\.png"):
        split = Split(tmp_path, ("a.png",), np.zeros(1, np.int32))
        decode_resident(split, 10**9, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def parts(clip):
    """Returns the parts of a model that no test changes."""
    text = np.random.default_rng(1).normal(size=(CLASSES, clip.vision.config.embed_dim))
    model = FVP(clip, to_device(text), **FVP_SETTINGS, rngs=nnx.Rngs(0))
    return split_model(model)


@jax.jit
def copied_with_optimizer(trainable):
    copied = jax.tree.map(jnp.copy, trainable)
    return TrainState(copied, OPTIMIZER.init(copied))


def new_state(mesh, trainable):
    return replicate(mesh, copied_with_optimizer(trainable))


def spans_of(source, state, frozen, pace):
    """Returns the state and the metrics after each span of steps of an epoch."""
    calls = source.epoch(EPOCH, 0, pace)
    return list(run_spans(source, calls, state, frozen, None, {}, pace))


def test_a_span_equals_single_steps_on_the_same_pixels(photos, clip, parts, monkeypatch):
    graphdef, trainable, frozen = parts
    mesh = data_mesh()
    resident, drawn = draw(photos)
    single = make_train_step(graphdef, OPTIMIZER, mesh)
    state, expected = new_state(mesh, trainable), []
    for step in range(2):
        crops, labels, weights = jax.tree.map(lambda rows, i=step: np.asarray(rows)[i], drawn)
        pixels = pixels_of(crops, resident, clip)
        state, metrics = single(state, frozen, None, {}, StepBatch(pixels, labels, weights))
        expected.append(metrics)

    crop = {"image_size": clip.image_size, "resample": clip.image_processor.resample}
    program = make_resident_train_step(graphdef, OPTIMIZER, mesh, 1, **crop)
    for seconds, spans in ((0.0, [1, 1]), (60.0, [2])):
        monkeypatch.setattr(batch_sources, "SPAN_SECONDS", seconds)
        source = ResidentBatches(
            program, resident, photos.labels, BATCH, batch_layout(mesh, BATCH, 0), SEED, mesh
        )
        pace = Pace()
        pace.num_steps = 2 if seconds else 1
        start = new_state(mesh, trainable)
        yielded = spans_of(source, start, frozen, pace)
        after, found = yielded[-1][0], [row for _, rows in yielded for row in rows]
        assert [len(rows) for _, rows in yielded] == spans
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for ours, theirs in zip(
            jax.tree.leaves(after.trainable), jax.tree.leaves(state.trainable), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert program._cache_size() == 1


@pytest.mark.parametrize(("seconds", "spans"), [(0.0, [1] * 6), (60.0, [1, 2, 3])])
def test_batches_from_the_host_are_grouped_into_spans_of_single_steps(
    photos, clip, parts, monkeypatch, seconds, spans
):
    graphdef, trainable, frozen = parts
    mesh = data_mesh()
    inputs, single = PixelInputs(clip, SEED, None), make_train_step(graphdef, OPTIMIZER, mesh)
    state, expected = new_state(mesh, trainable), []
    for batch in inputs.epoch(photos, 1, EPOCH):
        state, metrics = single(state, frozen, None, {}, StepBatch(*batch[:3], batch.indices))
        expected.append(metrics)

    monkeypatch.setattr(batch_sources, "SPAN_SECONDS", seconds)
    source = HostBatches(single, inputs, photos, 1, batch_layout(mesh, 1, 0), mesh)
    start = new_state(mesh, trainable)
    yielded = spans_of(source, start, frozen, Pace())
    assert [len(rows) for _, rows in yielded] == spans
    np.testing.assert_array_equal([row for _, rows in yielded for row in rows], expected)
    for ours, theirs in zip(
        jax.tree.leaves(yielded[-1][0].trainable), jax.tree.leaves(state.trainable), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


class WatchedMetric:
    """Result of a step that records when the host waits for it."""

    def __init__(self, number, events):
        self.number, self.events = number, events

    def block_until_ready(self):
        self.events.append(f"waited for {self.number}")
        return self

    def __array__(self, dtype=None, copy=None):
        return np.zeros((), dtype)


def test_at_most_two_batches_from_the_host_are_on_the_devices(photos, clip, monkeypatch):
    events, numbers, sent, alive = [], itertools.count(), [], []

    def send(mesh, batch):
        events.append("sent")
        sent.append(weakref.ref(batch.inputs))
        alive.append(sum(array() is not None for array in sent))
        return batch

    def step(state, frozen, cache, choices, batch):
        return state, StepMetrics(WatchedMetric(next(numbers), events), 0.0, 0.0)

    monkeypatch.setattr(batch_sources, "split_batch", send)
    mesh = data_mesh()
    source = HostBatches(
        step, PixelInputs(clip, SEED, None), photos, 1, batch_layout(mesh, 1, 0), mesh
    )
    pace = Pace()
    pace.num_steps = len(photos)
    spans_of(source, TrainState(nnx.State({}), None), nnx.State({}), pace)
    between = [event for n in range(4) for event in (f"waited for {n}", "sent")]
    assert events == ["sent", "sent", *between, "waited for 4"]
    assert max(alive) == 2  # the batch of the step that runs, and the next one


def test_a_span_compiles_to_a_loop_that_never_calls_the_host(photos, clip, parts):
    graphdef, trainable, frozen = parts
    mesh = data_mesh()
    resident, drawn = draw(photos)
    crop = {"image_size": clip.image_size, "resample": clip.image_processor.resample}
    program = make_resident_train_step(graphdef, OPTIMIZER, mesh, 1, **crop)
    arguments = (new_state(mesh, trainable), frozen, None, {}, resident.canvases, drawn)
    compiled = program.lower(*arguments, jnp.int32(0), jnp.int32(2)).compile().as_text()
    assert " while(" in compiled
    for word in ("callback", "infeed", "outfeed"):
        assert word not in compiled
