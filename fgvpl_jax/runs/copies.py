"""Looks for copies among a user's photos, which would make results too good."""

from collections.abc import Mapping

import numpy as np
from absl import logging
from jaxtyping import Int

from fgvpl_jax.clip import CLIP
from fgvpl_jax.data import ImageCache, Split
from fgvpl_jax.data.near_copies import (
    MOST_PHOTOS,
    copied_from,
    first_copies,
    groups_of_copies,
    linked_copies,
)
from fgvpl_jax.errors import first_of
from fgvpl_jax.runs.run import Run, signatures_of
from fgvpl_jax.training import is_writer

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
    """Returns a user's validation images without copies of support images; None if none is left.

    A model that was trained on the copy says nothing about new photos. A warning names some.
    """
    support = run.few_shot.support
    if run.config.data.source != "folder" or max(len(validation), len(support)) > MOST_PHOTOS:
        return validation
    known, found = (signatures_of(s, run.clip, run.image_cache) for s in (support, validation))
    is_copy = copied_from(found, known)
    if not is_copy.any():
        return validation
    if is_writer():
        copies = [validation.keys[place] for place in np.flatnonzero(is_copy)]
        logging.warning(
            "%d of the %d validation images look like copies of support images and are left out: "
            "%s",
            len(copies),
            len(validation),
            first_of(copies, MOST_NAMED),
        )
    return None if is_copy.all() else validation.select(np.flatnonzero(~is_copy).tolist())


def copies_for_folds(
    support: Split, clip: CLIP, cache: ImageCache | None
) -> Int[np.ndarray, "s"] | None:
    """Returns which support images must share a fold, see `linked_copies`; warns if there are some.

    Args:
        support: Images that are divided into folds.
        clip: Backbone whose crops are compared.
        cache: Cache of decoded images; None reads the files.
    Returns:
        None if no image is a copy, if all are copies of one, because training needs an image
        outside the fold, or if there are too many images, with a warning.
    """
    if len(support) > MOST_PHOTOS:
        if is_writer():
            logging.warning(
                "copies are looked for among at most %d support images, not among %d: if there are "
                "some, the estimate is too good",
                MOST_PHOTOS,
                len(support),
            )
        return None
    found = signatures_of(support, clip, cache)
    first = linked_copies(found)
    if np.bincount(first).max() > LONGEST_CHAIN * len(support):
        first = first_copies(found)
    groups = groups_of_copies(first)
    if not groups or len(set(first.tolist())) == 1:
        return None
    if is_writer():
        logging.warning(
            "%d of the %d support images look like copies of others, such as %s and %s: the "
            "estimate keeps copies in one fold",
            sum(map(len, groups)) - len(groups),
            len(support),
            *(support.keys[place] for place in groups[0][:2]),
        )
    return first
