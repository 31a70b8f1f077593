"""Warns of a user's photos that are evaluated although copies of them were trained on."""

import jax
from absl import logging

from fgvpl_jax.data.near_copies import MOST_PHOTOS, copied_from, signatures
from fgvpl_jax.runs.run import Run
from fgvpl_jax.training import is_writer

MOST_NAMED = 3


def warn_of_copies(run: Run) -> None:
    """Logs a warning if validation or test photos look like copies of support images.

    Their labels are known from training, so the results on them are too good. Benchmarks are left
    as they were published.

    Args:
        run: Run whose results are written: no photo is read before it has been evaluated.
    """
    if run.config.data.source != "folder" or not is_writer():
        return
    support = run.few_shot.support
    cache = run.image_cache if jax.process_count() == 1 else None
    evaluated = {"validation": run.few_shot.validation, "test": run.dataset.test}
    known = None
    for name, split in evaluated.items():
        if split is None or max(len(split), len(support)) > MOST_PHOTOS:
            continue
        if known is None:
            known = signatures(support, run.clip.resize_and_crop, cache)
        found = copied_from(signatures(split, run.clip.resize_and_crop, cache), known)
        if found.any():
            keys = [key for key, is_copy in zip(split.keys, found, strict=True) if is_copy]
            logging.warning(
                "%d of the %d %s images look like copies of support images, so results on them are "
                "too good: %s%s; --mode=data lists all of them",
                len(keys),
                len(split),
                name,
                ", ".join(keys[:MOST_NAMED]),
                ", …" if len(keys) > MOST_NAMED else "",
            )
