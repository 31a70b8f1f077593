"""State, step, loop, checkpoints and the device mesh."""

from fgvpl_jax.training.cache_builder import CacheBuilder
from fgvpl_jax.training.checkpoints import Checkpoints, Provenance, same_backbone
from fgvpl_jax.training.inputs import (
    FeatureInputs,
    FewShotInputs,
    InputBatch,
    Inputs,
    PixelInputs,
    kept_text_features,
    one_behind,
)
from fgvpl_jax.training.loop import Observer, read_metrics, restore_model, train
from fgvpl_jax.training.mesh import (
    batch_layout,
    batch_size_for,
    data_mesh,
    replicate,
    split_batch,
    to_host,
)
from fgvpl_jax.training.processes import (
    gather_texts,
    is_writer,
    join_processes,
    process_share,
    wait_for_all,
)
from fgvpl_jax.training.train_step import TrainState, make_train_step, split_model

__all__ = [
    "CacheBuilder",
    "Checkpoints",
    "FeatureInputs",
    "FewShotInputs",
    "InputBatch",
    "Inputs",
    "Observer",
    "PixelInputs",
    "Provenance",
    "TrainState",
    "batch_layout",
    "batch_size_for",
    "data_mesh",
    "gather_texts",
    "is_writer",
    "join_processes",
    "kept_text_features",
    "make_train_step",
    "one_behind",
    "process_share",
    "read_metrics",
    "replicate",
    "restore_model",
    "same_backbone",
    "split_batch",
    "split_model",
    "to_host",
    "train",
    "wait_for_all",
]
