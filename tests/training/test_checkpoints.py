"""Checkpoints are restored exactly as they were saved, or refused."""

import itertools
import os
import pwd
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fgvpl_jax.errors import UserError
from fgvpl_jax.training import Checkpoints, Provenance, TrainState, same_backbone
from fgvpl_jax.training.checkpoints import KEEP_LAST, Progress
from fgvpl_jax.training.train_step import StepMetrics
from fgvpl_jax.variables import Trainable
from tests.cases import further
from tests.damage import flip_bit, non_empty_files, truncate

PROVENANCE = Provenance("fg_vpl", ["a", "b"], {"name": "x", "sha256": "1"}, 1)


class Weights(nnx.Module):
    """A model with random weights and an empty prompt."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.kernel = Trainable(jnp.asarray(rng.normal(size=(7, 5)), jnp.float32))
        self.prompt = Trainable(jnp.zeros((0, 5)))  # as in a model without a prompt


def state_of(seed):
    trainable = nnx.state(Weights(seed), Trainable)
    return TrainState(trainable, optax.adamw(1e-3).init(trainable))


def save_steps(directory, steps):
    with Checkpoints(directory, PROVENANCE, to_train=True) as checkpoints:
        for step in steps:
            checkpoints.save(step, Progress(state_of(step), step))


def restore(directory, *, to_train=True):
    with Checkpoints(directory, PROVENANCE, to_train=to_train) as checkpoints:
        return checkpoints.restore(state_of(99))


def assert_same(tree, other):
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_unfinished_epoch_is_restored_bit_for_bit(tmp_path):
    steps = [StepMetrics(*np.float32([0.1, 2, 4])), StepMetrics(*np.float32([1 / 3, 3, 4]))]
    start = state_of(5).trainable
    with Checkpoints(tmp_path, PROVENANCE, to_train=True) as checkpoints:
        checkpoints.save(8, Progress(state_of(1), 3, steps, 1.25, start))
    progress = restore(tmp_path)
    assert_same(progress.state, state_of(1))
    assert_same(progress.epoch_start, start)
    assert (progress.epoch, progress.seconds) == (3, 1.25)
    assert progress.steps == steps


def test_a_state_without_trainable_parameters_is_saved_and_restored(tmp_path):
    empty = TrainState(nnx.State({}), None)
    with Checkpoints(tmp_path, PROVENANCE, to_train=True) as checkpoints:
        checkpoints.save(0, Progress(empty))
    with Checkpoints(tmp_path, PROVENANCE) as checkpoints:
        assert checkpoints.latest_epoch == 0
        assert not jax.tree.leaves(checkpoints.restore(empty).state)


def test_overwriting_donated_memory_does_not_change_the_saved_state(tmp_path):
    state = state_of(1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    with Checkpoints(tmp_path, PROVENANCE, to_train=True) as checkpoints:
        checkpoints.save(1, Progress(state, 1))
        overwrite(state)
    assert_same(restore(tmp_path).state, state_of(1))


def test_only_the_last_checkpoints_are_kept(tmp_path):
    save_steps(tmp_path, range(1, 6))
    names = {int(folder.name) for folder in tmp_path.iterdir()}
    assert names == {5 - i for i in range(KEEP_LAST)}
    save_steps(tmp_path, [5])  # this step is already saved
    assert restore(tmp_path).epoch == 5


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """Returns a folder that holds checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    save_steps(directory, [1, 2])
    return directory


@pytest.mark.parametrize("damage", [truncate, *further(flip_bit)])
def test_damage_to_any_file_is_reported_or_harmless(two_checkpoints, tmp_path, capsys, damage):
    rng = np.random.default_rng(0)
    noticed = 0
    for number in range(len(non_empty_files(two_checkpoints / "2"))):
        copy = tmp_path / str(number)
        shutil.copytree(two_checkpoints, copy)
        file = non_empty_files(copy / "2")[number]
        file.write_bytes(damage(file.read_bytes(), rng))
        progress = restore(copy)
        reported = "step 2" in capsys.readouterr().err
        noticed += reported
        assert progress.epoch == (1 if reported else 2)
        assert (copy / "2").exists() != reported
        assert_same(progress.state, state_of(progress.epoch))
    assert noticed > 3


@pytest.mark.parametrize("step", ["1", "2"])
@pytest.mark.parametrize("key", [b"commit_timestamp_nsecs", b"item_handlers", b"custom_metadata"])
def test_damaged_metadata_does_not_stop_a_restore(two_checkpoints, tmp_path, key, step):
    shutil.copytree(two_checkpoints, tmp_path / "c")
    file = tmp_path / "c" / step / "_CHECKPOINT_METADATA"
    file.write_bytes(file.read_bytes().replace(key, key[:-1] + b"x"))
    assert restore(tmp_path / "c").epoch == (1 if step == "2" else 2)


def test_arrays_changed_under_valid_checksums_are_reported(two_checkpoints, tmp_path):
    """Replaces the arrays of one checkpoint by those of another."""
    shutil.copytree(two_checkpoints, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "2" / "trainable")
    shutil.copytree(two_checkpoints / "1" / "trainable", tmp_path / "c" / "2" / "trainable")
    with pytest.raises(UserError, match=r"step 2 .* is damaged .*sha256"):
        restore(tmp_path / "c", to_train=False)
    assert (tmp_path / "c" / "2").exists()
    assert_same(restore(tmp_path / "c").state, state_of(1))


def test_nothing_is_removed_if_no_checkpoint_is_intact(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "c")
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / "c" / step / "optimizer")
    with pytest.raises(UserError, match=r"none of the checkpoints .* is intact"):
        restore(tmp_path / "c")
    assert {folder.name for folder in (tmp_path / "c").iterdir()} == {"1", "2"}


def test_an_unfinished_checkpoint_is_removed_only_by_a_training_run(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "c")
    unfinished = tmp_path / "c" / "3.orbax-checkpoint-tmp"
    shutil.copytree(two_checkpoints / "2", unfinished)
    assert restore(tmp_path / "c", to_train=False).epoch == 2
    assert unfinished.exists()  # another run may be writing it
    assert restore(tmp_path / "c").epoch == 2
    assert not unfinished.exists()


def test_a_full_disk_is_reported(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "c")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written [^{]*File too large[^{]*: free"):
            save_steps(tmp_path / "c", [3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert restore(tmp_path / "c").epoch == 2


def test_a_clock_that_jumps_during_a_save_loses_no_checkpoint(
    two_checkpoints, tmp_path, monkeypatch
):
    shutil.copytree(two_checkpoints, tmp_path / "c")
    clock, jumps = time.time, itertools.cycle((0, 3e7))
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    with pytest.raises(UserError, match=r"cannot be written .*imed out after"):
        save_steps(tmp_path / "c", [3])
    monkeypatch.undo()
    assert restore(tmp_path / "c").epoch == 2


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    state = state_of(1)
    state.trainable["kernel"][...] = state.trainable["kernel"][...].at[2, 3].set(jnp.nan)
    with Checkpoints(tmp_path, PROVENANCE, to_train=True) as checkpoints:
        with pytest.raises(FloatingPointError, match="kernel"):
            checkpoints.save(1, Progress(state, 1))
        assert checkpoints.latest_step is None
    assert not list(tmp_path.iterdir())


def test_a_backbone_is_identified_by_its_content():
    mine = {"name": "x", "sha256": "1", "small_files_sha256": "2"}
    assert same_backbone(mine | {"name": "y"}, mine)
    assert same_backbone({"sha256": "1"}, mine)  # from a run that did not hash small files yet
    assert not same_backbone(mine | {"sha256": "0"}, mine)
    assert not same_backbone(mine | {"small_files_sha256": "0"}, mine)
    assert not same_backbone({}, mine)


@pytest.mark.parametrize(
    "name",
    [
        *("[2026] birds", "a*b", "q?", "back\\slash", "100%41 #", "~", "{a}", "new\nline", "鸟 é"),
        *("gs:", "://", os.fsdecode(b"not utf-8: \xff"), "x" * 250),
    ],
)
def test_a_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name / "run" / "checkpoints"
    save_steps(folder, [1, 2, 3])
    assert sorted(os.listdir(folder)) == ["2", "3"]
    assert_same(restore(folder).state, state_of(3))
    assert Checkpoints.read_provenance(folder) == PROVENANCE


def test_the_neighbour_of_a_folder_with_a_pattern_as_its_name_is_not_read(tmp_path):
    save_steps(tmp_path / "1", [1])
    save_steps(tmp_path / "[12]", [2])
    assert_same(restore(tmp_path / "[12]").state, state_of(2))


def test_the_owner_of_a_checkpoint_needs_no_name(tmp_path, monkeypatch):
    def unnamed(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unnamed)
    save_steps(tmp_path, [1, 2])
    assert_same(restore(tmp_path).state, state_of(2))
