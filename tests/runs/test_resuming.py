"""Runs that were stopped, by signals or otherwise, end like a run that was not stopped."""

import functools
import shutil
import signal

import pytest

from fgvpl_jax import load_classifier
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Evaluator
from fgvpl_jax.interruption import Interrupted, handling_signals
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import VisualCacheBuilder, batch_sources, inputs
from tests.cases import further
from tests.conftest import make_tiny_config
from tests.whole_runs import metrics, run, without_times


@pytest.fixture(scope="module")
def uninterrupted(tiny_clip_dir, photos_dir, tmp_path_factory):
    """Returns a function that runs a setting once, for all tests of the module.

    It returns a copy of the config, the folder and the results of the run, which tests must not
    change.
    """

    @functools.cache
    def finish(**settings):
        config = make_tiny_config(tiny_clip_dir, photos_dir)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
        path = tmp_path_factory.mktemp("uninterrupted") / "W"
        return config, path, run(config, path)

    def copy(**settings):
        config, path, results = finish(**settings)
        return config.copy_and_resolve_references(), path, results

    return copy


@pytest.mark.parametrize(
    ("cache_refresh", "resident_gb"),
    [("epoch", 1.0), *further(("once", 1.0), ("epoch", 0.0))],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    uninterrupted, tmp_path, monkeypatch, cache_refresh, resident_gb
):
    config, path, results = uninterrupted(
        cache_refresh=cache_refresh, data__resident_gb=resident_gb
    )
    module, name = (batch_sources, "draw_epoch") if resident_gb else (inputs, "train_batches")
    original = getattr(module, name)

    def interrupted(*args, epoch, **kwargs):
        if epoch == 3:  # the last checkpoint is of epoch 2, so epoch 2 (from 0) runs again
            raise KeyboardInterrupt
        return original(*args, epoch=epoch, **kwargs)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    monkeypatch.undo()
    resumed = run(config, tmp_path / "cut")
    assert without_times(resumed) == without_times(results)
    assert metrics(tmp_path / "cut") == metrics(path)


def signal_in_epoch(number, place=0):
    """Wraps `train_batches` to raise SIGTERM when a batch of the epoch is handed out."""
    original = inputs.train_batches

    def batches(*args, epoch, **kwargs):
        for current, batch in enumerate(original(*args, epoch=epoch, **kwargs)):
            if (epoch, current) == (number, place):
                signal.raise_signal(signal.SIGTERM)
            yield batch

    return batches


def signal_after_spans(number):
    """Replaces `slowest`, which is called after every span of steps, to raise SIGTERM."""
    calls = []

    def wait(seconds):
        calls.append(seconds)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return seconds

    return wait


def signal_at_cache(number):
    """Wraps the cache builder to raise SIGTERM when the cache of an epoch is built."""
    original = VisualCacheBuilder.__call__
    calls = []

    def build(*args):
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        calls.append(None)
        return original(*args)

    return build


@pytest.mark.parametrize(
    ("cache_refresh", "resident_gb"),
    [("once", 1.0), *further(("epoch", 1.0), ("epoch", 0.0))],
)
def test_a_terminated_run_saves_the_step_and_ends_like_an_uninterrupted_one(
    uninterrupted, tmp_path, monkeypatch, cache_refresh, resident_gb, capsys
):
    """The run trains in spans of one to three steps, with photos on the device or on the host."""
    config, path, results = uninterrupted(
        cache_refresh=cache_refresh, data__resident_gb=resident_gb
    )
    monkeypatch.setattr(batch_sources, "SPAN_SECONDS", 0.0)
    monkeypatch.setattr(batch_sources, "slowest", signal_after_spans(8))
    with pytest.raises(Interrupted), handling_signals():
        run(config, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoints" / "8").exists()  # 2 epochs of 3 steps, then 2 steps
    assert [line["epoch"] for line in metrics(tmp_path / "cut")] == [1, 2]
    resumed = run(config, tmp_path / "cut")
    assert "resuming after epoch 2 and 2 steps of 4" in capsys.readouterr().out
    assert without_times(resumed) == without_times(results)
    assert metrics(tmp_path / "cut") == metrics(path)


@pytest.mark.parametrize("num_steps", [7, *further(5, 8)])
def test_two_stages_are_resumed_in_either_stage(uninterrupted, tmp_path, monkeypatch, num_steps):
    """Seven of twelve steps belong to the first stage, which ends within an epoch."""
    config, path, results = uninterrupted(method="two_stage")
    monkeypatch.setattr(batch_sources, "SPAN_SECONDS", 0.0)
    monkeypatch.setattr(batch_sources, "slowest", signal_after_spans(num_steps))
    with pytest.raises(Interrupted), handling_signals():
        run(config, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoints" / str(num_steps)).exists()
    resumed = run(config, tmp_path / "cut")
    assert without_times(resumed) == without_times(results)
    assert metrics(tmp_path / "cut") == metrics(path)


def test_a_signal_during_a_span_of_steps_waits_for_its_end(tiny_config, tmp_path, monkeypatch):
    tiny_config.data.resident_gb = 0.0
    tiny_config.batch_size = 2  # six steps per epoch, in spans of 1, 2 and 3
    whole = run(tiny_config, tmp_path / "whole")
    monkeypatch.setattr(batch_sources, "SPAN_SECONDS", 60.0)
    monkeypatch.setattr(inputs, "train_batches", signal_in_epoch(0, place=2))
    with pytest.raises(Interrupted), handling_signals():
        run(tiny_config, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoints" / "3").exists()
    assert without_times(run(tiny_config, tmp_path / "cut")) == without_times(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_run_terminated_while_its_cache_is_built_loses_no_epoch(finished, tmp_path, monkeypatch):
    config, path, results = finished
    monkeypatch.setattr(VisualCacheBuilder, "__call__", signal_at_cache(3))
    with pytest.raises(Interrupted), handling_signals():
        run(config, tmp_path / "W")
    monkeypatch.undo()
    assert (tmp_path / "W" / "checkpoints" / "9").exists()
    assert without_times(run(config, tmp_path / "W")) == without_times(results)
    assert metrics(tmp_path / "W") == metrics(path)


def test_a_run_terminated_during_evaluation_ends_at_once(finished, tmp_path, monkeypatch):
    config, _, results = finished
    monkeypatch.setattr(Evaluator, "predict", lambda *a, **k: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted), handling_signals():
        run(config, tmp_path / "W")
    monkeypatch.undo()
    assert not (tmp_path / "W" / "results.json").exists()
    assert without_times(run(config, tmp_path / "W")) == without_times(results)


def test_a_truncated_line_of_metrics_is_written_again(finished, tmp_path):
    config, path, _ = finished
    shutil.copytree(path, tmp_path / "W")
    shutil.rmtree(tmp_path / "W" / "checkpoints" / "12")
    file = tmp_path / "W" / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    run(config, tmp_path / "W")
    assert metrics(tmp_path / "W") == metrics(path)


def test_a_signal_while_features_of_an_epoch_are_computed_ends_the_run_at_once(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.method = "clip_adapter"
    whole = run(tiny_config, tmp_path / "whole")
    monkeypatch.setattr(inputs, "train_batches", signal_in_epoch(2))
    with pytest.raises(Interrupted), handling_signals():
        run(tiny_config, tmp_path / "cut")
    monkeypatch.undo()
    # The run saved 2 epochs of 3 steps, and no further step.
    assert (tmp_path / "cut" / "checkpoints" / "6").exists()
    assert not (tmp_path / "cut" / "checkpoints" / "7").exists()
    assert without_times(run(tiny_config, tmp_path / "cut")) == without_times(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_reported_and_the_run_resumes_from_the_one_before(
    finished, tmp_path, damage, capsys
):
    config, path, results = finished
    shutil.copytree(path, tmp_path / "W")
    for file in (tmp_path / "W" / "checkpoints" / "12").rglob("*"):
        if file.is_file() and "metadata" not in file.name.lower():
            if damage == "remove":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoint of step 12 .* is damaged"):
        experiment.evaluate(Workdir(tmp_path / "W"))
    assert without_times(run(config, tmp_path / "W")) == without_times(results)
    captured = capsys.readouterr()
    assert "the checkpoint of step 12" in captured.err
    assert "resuming after epoch 2 of 4" in captured.out
    assert metrics(tmp_path / "W") == metrics(path)


@pytest.mark.parametrize("name", ["support", "known_classes"])
def test_a_damaged_array_file_is_reported_and_written_again(finished, tmp_path, name):
    config, path, _ = finished
    shutil.copytree(path, tmp_path / "W")
    file = tmp_path / "W" / f"{name}.npz"
    content = bytearray(file.read_bytes())
    content[200] ^= 4  # inside the first array
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.npz is damaged .*CRC.*same training command"):
        load_classifier(tmp_path / "W")
    run(config, tmp_path / "W")
    load_classifier(tmp_path / "W")
