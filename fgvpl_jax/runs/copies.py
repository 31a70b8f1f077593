"""Looks for copies among a user's photos, which would make results too good."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from absl import logging
from jaxtyping import Float32

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import ImageCache, Split
from fgvpl_jax.data.near_copies import (
    MOST_PHOTOS,
    copied_from,
    first_copies,
    groups_of_copies,
    linked_copies,
    signatures,
)
from fgvpl_jax.errors import first_of
from fgvpl_jax.runs.run import Run
from fgvpl_jax.training import gather_rows, is_writer, process_share

MOST_NAMED = 3
# Share of the photos that one chain of copies may have. A longer one links pictures that are alike
# by nature, and folds could not be of about equal size: then copies of a first photo alone count.
LONGEST_CHAIN = 0.25


def warn_of_copies(run: Run) -> None:
    """Logs a warning if validation or test photos look like copies of support images.

    Their labels are known from training, so the results on them are too good. Benchmarks are left
    as they were published.

    Args:
        run: Run whose results are written: no photo is read before it has been evaluated.
    """
    if run.config.data.source != "folder":
        return
    evaluated = {"validation": run.few_shot.validation, "test": run.dataset.test}
    hint = "; --mode=data lists all of them"
    warn_of_copies_in(evaluated, run.few_shot.support, run.clip, run.image_cache, hint)


def warn_of_copies_in(
    evaluated: Mapping[str, Split | None],
    support: Split,
    clip: CLIP,
    cache: ImageCache | None,
    hint: str = "",
) -> None:
    """Logs a warning if photos look like copies of support images.

    Args:
        evaluated: Photos by the name of their split; None for a split that does not exist.
        support: Images that were trained on.
        clip: Backbone whose crops are compared.
        cache: Cache of decoded images; None reads the files.
        hint: What to do to see all copies, after a semicolon.
    """
    known = None
    for name, split in evaluated.items():
        if split is None or max(len(split), len(support)) > MOST_PHOTOS:
            continue
        if known is None:
            known = signatures_of(support, clip, cache)
        found = copied_from(signatures_of(split, clip, cache), known)
        if found.any() and is_writer():
            keys = [key for key, is_copy in zip(split.keys, found, strict=True) if is_copy]
            logging.warning(
                "%d of the %d %s images look like copies of support images, so results on them are "
                "too good: %s%s",
                len(keys),
                len(split),
                name,
                first_of(keys, MOST_NAMED),
                hint,
            )


def without_copies(run: Run, validation: Split) -> Split | None:
    """Returns a user's validation images without copies; None if none is left.

    A copy of a support image, also of another class, says nothing about new photos, and a copy of
    another validation image nothing more than that one. A warning names some.
    """
    support = run.few_shot.support
    if run.config.data.source != "folder" or max(len(validation), len(support)) > MOST_PHOTOS:
        return validation
    known, found = (signatures_of(s, run.clip, run.image_cache) for s in (support, validation))
    is_copy = copied_from(found, known) | (first_copies(found) != np.arange(len(found)))
    if not is_copy.any():
        return validation
    if is_writer():
        copies = [validation.keys[place] for place in np.flatnonzero(is_copy)]
        logging.warning(
            "%d of the %d validation images look like copies of support images, or of one "
            "another, and are left out: %s",
            len(copies),
            len(validation),
            first_of(copies, MOST_NAMED),
        )
    return None if is_copy.all() else validation.select(np.flatnonzero(~is_copy).tolist())


def with_copies(photos: Split, clip: CLIP, cache: ImageCache | None, name: str) -> Split:
    """Returns photos with their groups of copies, see `linked_copies`; warns if there are some.

    The groups are None if no photo is a copy, if all are copies of one, because training needs a
    photo outside a group that is held out, or if there are too many photos, with a warning.

    Args:
        photos: A user's own photos.
        clip: Backbone whose crops are compared.
        cache: Cache of decoded images; None reads the files.
        name: Name of the photos in warnings.
    """
    if len(photos) > MOST_PHOTOS:
        if is_writer():
            logging.warning(
                "copies are looked for among at most %d %s images, not among %d: if there are "
                "some, estimates are too good",
                MOST_PHOTOS,
                name,
                len(photos),
            )
        return photos
    found = signatures_of(photos, clip, cache)
    copies = linked_copies(found)
    if np.bincount(copies).max() > LONGEST_CHAIN * len(photos):
        copies = first_copies(found)
    groups = groups_of_copies(copies)
    if not groups or len(set(copies.tolist())) == 1:
        return photos
    if is_writer():
        logging.warning(
            "%d of the %d %s images look like copies of others, such as %s and %s: copies are "
            "held out together",
            sum(map(len, groups)) - len(groups),
            len(photos),
            name,
            *(photos.keys[place] for place in groups[0][:2]),
        )
    return replace(photos, copies=copies)


def signatures_of(
    photos: Split, clip: CLIP, cache: ImageCache | None
) -> Float32[np.ndarray, "n 194"]:
    """Returns the signature of each photo; each of several processes reads its share."""
    return gather_rows(signatures(photos, clip.resize_and_crop, cache, process_share()))
