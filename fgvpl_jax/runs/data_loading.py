"""Loads the data of a config: the data set, the few-shot draw, the cache of decoded images."""

from absl import logging
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import (
    BENCHMARKS,
    Dataset,
    FewShot,
    ImageCache,
    Split,
    benchmark_named,
    default_cache_folder,
    draw_few_shot,
    load_coop,
    load_folder,
    load_manifest,
    load_shapes,
    load_tfds,
    read_few_shot,
    unreadable_images,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user
from fgvpl_jax.training import gather_texts, process_share


def load_dataset(config: ConfigDict) -> Dataset:
    """Loads the data set that `config.data` names."""
    data = config.data
    root = expand_user(data.root or "")
    if data.source == "coop":
        benchmark = BENCHMARKS.get(config.benchmark)
        return load_coop(data.root, data.split_file, data.image_dir, benchmark)
    if data.source == "tfds":
        return load_tfds(data.root, data.split_file, benchmark_named(config.benchmark))
    if data.source == "folder":
        return load_manifest(data.root) if root.is_file() else load_folder(data.root)
    if data.source == "shapes":
        return load_shapes()
    raise UserError(f"data.source is {data.source!r}: choose 'coop', 'tfds', 'folder' or 'shapes'")


def draw(config: ConfigDict, dataset: Dataset) -> FewShot:
    """Draws the few-shot images by the seed, or reads those of another run."""
    if config.data.few_shot_file:
        return read_few_shot(str(expand_user(config.data.few_shot_file)), dataset, config.shots)
    return draw_few_shot(dataset, config.shots, config.seed, config.allow_fewer)


def open_image_cache(config: ConfigDict) -> ImageCache | None:
    """Opens the cache of decoded images; returns None if its size is 0."""
    folder, size = config.data.image_cache_dir, config.data.image_cache_gb
    if not size:
        return None
    try:
        place = expand_user(folder) if folder else default_cache_folder()
    except RuntimeError:
        logging.warning(
            "this user has no home folder, so decoded images are not kept: name a folder for them, "
            "such as --config.data.image_cache_dir=/tmp/images"
        )
        return None
    return ImageCache(place, int(size * 1e9))


def check_readable(support: Split, clip: CLIP, image_cache: ImageCache | None) -> None:
    """Reads every image once; each of several processes reads its share.

    Raises:
        UserError: If an image cannot be read; names the images and says how many there are.
    """
    problems = gather_texts(
        unreadable_images(
            support, transform=clip.resize_and_crop, cache=image_cache, share=process_share()
        )
    )
    if problems:
        raise UserError(
            f"{len(problems)} of the {len(support)} training images cannot be read: "
            f"{'; '.join(problems[:3])}{'; …' if len(problems) > 3 else ''}: replace or remove "
            "them; --mode=data lists all"
        )
