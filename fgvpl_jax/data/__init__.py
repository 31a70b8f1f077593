"""Data sources, splits, few-shot draws, transforms and batches; independent of any model."""

from fgvpl_jax.data.batches import (
    ALL,
    PADDING,
    Batch,
    Share,
    augmented_batches,
    epoch_rows,
    eval_batches,
    image_generator,
    in_rows,
    in_threads,
    share_batches,
    train_batches,
    unreadable_images,
)
from fgvpl_jax.data.benchmarks import BENCHMARKS, Benchmark, benchmark_named
from fgvpl_jax.data.checks import DataReport, check_dataset
from fgvpl_jax.data.coop import load_coop, read_split_file
from fgvpl_jax.data.few_shot import FewShot, draw_few_shot, few_shot_record, read_few_shot
from fgvpl_jax.data.folder import load_folder, photos_at
from fgvpl_jax.data.image_cache import CacheEntry, ImageCache, default_cache_folder, identify
from fgvpl_jax.data.images import UnreadableImage, as_photo, decode_image
from fgvpl_jax.data.manifest import load_manifest
from fgvpl_jax.data.shapes import ShapesSplit, load_shapes
from fgvpl_jax.data.splits import Dataset, Split
from fgvpl_jax.data.tfds_source import load_tfds
from fgvpl_jax.data.transforms import (
    Augmentation,
    Crop,
    Transform,
    random_crop,
    random_crop_and_flip,
)

__all__ = [
    "ALL",
    "BENCHMARKS",
    "PADDING",
    "Augmentation",
    "Batch",
    "Benchmark",
    "CacheEntry",
    "Crop",
    "DataReport",
    "Dataset",
    "FewShot",
    "ImageCache",
    "ShapesSplit",
    "Share",
    "Split",
    "Transform",
    "UnreadableImage",
    "as_photo",
    "augmented_batches",
    "benchmark_named",
    "check_dataset",
    "decode_image",
    "default_cache_folder",
    "draw_few_shot",
    "epoch_rows",
    "eval_batches",
    "few_shot_record",
    "identify",
    "image_generator",
    "in_rows",
    "in_threads",
    "load_coop",
    "load_folder",
    "load_manifest",
    "load_shapes",
    "load_tfds",
    "photos_at",
    "random_crop",
    "random_crop_and_flip",
    "read_few_shot",
    "read_split_file",
    "share_batches",
    "train_batches",
    "unreadable_images",
]
