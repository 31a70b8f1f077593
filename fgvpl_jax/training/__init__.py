"""State, step, loop, checkpoints and the device mesh."""

from fgvpl_jax.training.checkpoints import Checkpoints, Progress, Provenance, same_backbone
from fgvpl_jax.training.few_shot_inputs import FewShotInputs, gather, initialise
from fgvpl_jax.training.inputs import (
    FeatureInputs,
    Inputs,
    PixelInputs,
    kept_text_features,
    one_behind,
)
from fgvpl_jax.training.loop import EpochCallback, train
from fgvpl_jax.training.mesh import (
    batch_layout,
    batch_size_for,
    data_mesh,
    replicate,
    split_batch,
    to_host,
)
from fgvpl_jax.training.metrics_file import EpochMetrics, read_metrics
from fgvpl_jax.training.microbatches import images_at_once_of, in_parts
from fgvpl_jax.training.processes import (
    LostProcesses,
    gather_rows,
    gather_texts,
    is_writer,
    join_processes,
    process_share,
    slowest,
    wait_for_all,
)
from fgvpl_jax.training.restoring import restore_model
from fgvpl_jax.training.setup import TrainingSetup, make_cache_builder, resident_bytes
from fgvpl_jax.training.shared_features import SharedFeatures
from fgvpl_jax.training.token_inputs import TokenInputs
from fgvpl_jax.training.train_step import PROGRAMS_KEPT, TrainState, make_train_step, split_model
from fgvpl_jax.training.visual_cache_builder import VisualCacheBuilder

__all__ = [
    "PROGRAMS_KEPT",
    "Checkpoints",
    "EpochCallback",
    "EpochMetrics",
    "FeatureInputs",
    "FewShotInputs",
    "Inputs",
    "LostProcesses",
    "PixelInputs",
    "Progress",
    "Provenance",
    "SharedFeatures",
    "TokenInputs",
    "TrainState",
    "TrainingSetup",
    "VisualCacheBuilder",
    "batch_layout",
    "batch_size_for",
    "data_mesh",
    "gather",
    "gather_rows",
    "gather_texts",
    "images_at_once_of",
    "in_parts",
    "initialise",
    "is_writer",
    "join_processes",
    "kept_text_features",
    "make_cache_builder",
    "make_train_step",
    "one_behind",
    "process_share",
    "read_metrics",
    "replicate",
    "resident_bytes",
    "restore_model",
    "same_backbone",
    "slowest",
    "split_batch",
    "split_model",
    "to_host",
    "train",
    "wait_for_all",
]
