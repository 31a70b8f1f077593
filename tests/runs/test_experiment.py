"""Whole runs on a tiny CLIP: results, repeated commands, and refused configs and folders."""

import json
import os
import shutil
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax import load_classifier
from fgvpl_jax.data import Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.runs import experiment, prepare
from fgvpl_jax.runs.results import ImageCounts, RunResults
from fgvpl_jax.runs.summary import summary_lines
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import loop
from tests.conftest import write_photo_folders
from tests.tiny_clip import write_tiny_clip
from tests.whole_runs import made_up_results, metrics, run, stored_results, without_times


def test_a_run_writes_its_files_and_results(finished):
    _, path, results = finished
    assert stored_results(path) == results.to_json()
    assert RunResults.read(Workdir(path)) == results
    assert results.counts == ImageCounts(train=9, validation=9, test=15)
    assert results.method == "fg_vpl"
    assert results.split_protocol == "the folders' own"
    assert results.choices["cache_logit_weight"] in (0.0, 1.0, 4.0)
    assert 0 <= results.test_accuracy <= 1
    assert results.temperature == 1.0  # 9 photos are too few to fit a temperature
    assert results.test_nll_tempered > 0
    assert (path / "support.npz").exists()
    assert (path / "known_classes.npz").exists()
    assert results.none_of_these.held_out_photos == 18
    assert [line["epoch"] for line in metrics(path)] == [1, 2, 3, 4]
    stored = json.loads((path / "config.json").read_text())
    assert stored["config"]["shots"] == 3
    assert len(stored["backbone"]["sha256"]) == 64
    drawn = json.loads((path / "few_shot.json").read_text())
    assert "red_square" in json.dumps(drawn)


def test_a_run_can_use_the_support_images_of_another_run(finished, tiny_config, tmp_path):
    _, path, _ = finished
    tiny_config.seed, tiny_config.method = 7, "gda"
    tiny_config.data.few_shot_file = str(path / "few_shot.json")
    run(tiny_config, tmp_path / "W")
    assert (tmp_path / "W" / "few_shot.json").read_text() == (path / "few_shot.json").read_text()


def test_evaluating_again_returns_equal_results(finished):
    _, path, results = finished
    again = experiment.evaluate(Workdir(path))
    assert without_times(again) == without_times(results)


def test_training_again_trains_nothing(finished, monkeypatch):
    config, path, results = finished
    monkeypatch.setattr(experiment, "train", lambda *a, **k: pytest.fail("trained again"))
    assert without_times(run(config, path)) == without_times(results)


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    config, path, results = finished
    assert without_times(run(config, tmp_path / "W")) == without_times(results)
    assert metrics(tmp_path / "W") == metrics(path)


def test_a_second_run_in_the_folder_is_refused(finished):
    config, path, _ = finished
    with (
        Workdir(path).locked(),
        pytest.raises(UserError, match=rf"another command .*pid {os.getpid()} on "),
    ):
        run(config, path)
    with Workdir(path).locked(), pytest.raises(UserError, match="another command"):
        experiment.evaluate(Workdir(path))
    with Workdir(path).locked():
        load_classifier(path)  # reading a run needs no lock


def test_a_second_evaluation_decodes_no_image(tiny_config, tmp_path, monkeypatch):
    tiny_config.data.image_cache_gb = 1
    tiny_config.data.image_cache_dir = str(tmp_path / "images")
    results = run(tiny_config, tmp_path / "W")
    monkeypatch.setattr(Split, "image", lambda *_: pytest.fail("decoded again"))
    assert without_times(experiment.evaluate(Workdir(tmp_path / "W"))) == without_times(results)
    tiny_config.data.image_cache_gb = 0  # this field does not change the run
    monkeypatch.undo()
    again = experiment.evaluate(Workdir(tmp_path / "W"), tiny_config)
    assert without_times(again) == without_times(results)


def test_lambda_keeps_its_value_without_a_grid(tiny_config, tmp_path):
    tiny_config.cache_logit_weight_grid = ()
    tiny_config.cache_logit_weight = 2.0
    assert run(tiny_config, tmp_path / "W").choices == {"cache_logit_weight": 2.0}


def test_a_folder_of_another_run_is_refused_and_untouched(finished):
    config, path, _ = finished
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    other = config.copy_and_resolve_references()
    other.seed = 7
    with pytest.raises(UserError, match=r"holds another run.*seed \(1 there, 7 now\)"):
        run(other, path)
    with pytest.raises(UserError, match="holds another run"):
        experiment.evaluate(Workdir(path), other)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_moved_data_and_backbone_are_the_same_run(finished, tmp_path):
    config, path, results = finished
    for name, old in (("photos", config.data.root), ("clip", config.clip)):
        (tmp_path / name).symlink_to(old)
    moved = config.copy_and_resolve_references()
    moved.data.root = str(tmp_path / "photos")
    moved.clip = str(tmp_path / "clip")
    again = experiment.evaluate(Workdir(path), moved)
    assert again.test_accuracy == results.test_accuracy


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "blip", "method is 'blip': choose one of zero_shot,"),
        ("epochs", 0, "epochs is 0"),
        ("seed", -1, "seed is -1"),
        ("cv_folds", 1, "cv_folds is 1"),
        ("data.image_cache_gb", -1.0, "image_cache_gb is -1"),
        ("shots", 50, "allow_fewer"),
        ("data.source", "tar", "data.source is 'tar'"),
        ("data.root", "/no/such/place", "/no/such/place"),
        ("data.few_shot_file", "/no/such/file", "/no/such/file"),
        ("clip", "./no/such/clip", "no/such/clip"),
        ("connectivity", 3, "3"),
        ("compute_dtype", "float16", "compute_dtype is 'float16'"),
        ("object_query", "patch", "object_query is 'patch'"),
        ("cache_refresh", "never", "cache_refresh is 'never'"),
        ("data.templates", ("a photo",), "a photo"),
        ("cache_logit_weight_grid", (0.0, "a"), "cache_logit_weight_grid is 'a'"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("object_logit_weight", -1.0, "object_logit_weight is -1"),
        ("seed", 10**20, "seed is 1"),
    ],
)
def test_mistakes_in_a_config_are_refused_before_anything_is_written(
    tiny_config, tmp_path, field, value, message
):
    with tiny_config.ignore_type():
        tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        run(tiny_config, tmp_path / "W")
    assert not (tmp_path / "W").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("compute_dtype", "bfloat16"), ("rematerialise", True), ("prompt_layer", 2)],
)
def test_a_setting_that_the_method_would_ignore_is_refused(tiny_config, tmp_path, field, value):
    tiny_config.method = "tip_adapter"
    tiny_config[field] = value
    with pytest.raises(UserError, match=rf"{field} is .*tip_adapter does not use.* fvp, fg_vpl$"):
        run(tiny_config, tmp_path / "W")
    assert not (tmp_path / "W").exists()


def test_a_checkpoint_of_other_classes_is_refused(finished, tmp_path, photos_dir):
    config, path, _ = finished
    copy = tmp_path / "photos"
    shutil.copytree(photos_dir, copy)
    for split in ("train", "val", "test"):
        (copy / split / "red_square").rename(copy / split / "red circle")
    work = tmp_path / "W"
    shutil.copytree(path, work)
    moved = config.copy_and_resolve_references()
    moved.data.root = str(copy)
    with pytest.raises(UserError, match=r"few_shot\.json"):
        experiment.evaluate(Workdir(work), moved)
    (work / "few_shot.json").unlink()
    with pytest.raises(UserError, match=r"class_names.*red circle"):
        experiment.evaluate(Workdir(work), moved)


def test_an_unfinished_run_is_not_evaluated(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "measure", lambda *a: made_up_results())
    run(tiny_config, tmp_path / "W")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "W" / "checkpoints" / "12")
    with pytest.raises(UserError, match="2 of 4 epochs"):
        experiment.evaluate(Workdir(tmp_path / "W"))
    shutil.rmtree(tmp_path / "W" / "checkpoints")
    with pytest.raises(UserError, match="is not trained"):
        experiment.evaluate(Workdir(tmp_path / "W"))
    assert not (tmp_path / "W" / "checkpoints").exists()


def test_an_unreadable_test_image_is_named_and_counted(tiny_config, photos_dir, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos_dir, copy)
    victim = copy / "test" / "red_square" / "002.png"
    victim.write_bytes(victim.read_bytes()[:40])
    tiny_config.data.root = str(copy)
    results = run(tiny_config, tmp_path / "W")
    assert results.counts.test == 15
    assert results.test_images_read == 14
    assert len(results.unreadable) == 1
    assert "red_square/002.png" in results.unreadable[0]


@pytest.mark.parametrize("broken", ["some", "all"])
def test_unreadable_validation_images_are_named_and_counted(
    tiny_config, photos_dir, tmp_path, broken
):
    copy = tmp_path / "photos"
    shutil.copytree(photos_dir, copy)
    victims = sorted((copy / "val").rglob("*.png"))
    victims = victims[:2] if broken == "some" else victims
    for victim in victims:
        victim.write_bytes(b"no photo")
    tiny_config.data.root = str(copy)
    results = run(tiny_config, tmp_path / "W")
    assert len(results.validation_unreadable) == len(victims)
    assert any(line.startswith(f"{len(victims)} validation") for line in summary_lines(results))
    assert bool(results.validation_accuracy) == (broken == "some")
    if broken == "all":
        assert results.choices["cache_logit_weight"] == tiny_config.cache_logit_weight


def test_a_run_without_a_prompt_is_saved_and_evaluated_again(tiny_config, tmp_path):
    tiny_config.num_prompts = 0
    tiny_config.epochs = 2
    results = run(tiny_config, tmp_path / "W")
    again = experiment.evaluate(Workdir(tmp_path / "W"))
    assert without_times(again) == without_times(results)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    """The learning rates of steps 1 and 2 of 12 are 1e30·(1 + cos(π·i/12))/2 = 1e30 and 9.83e29."""
    tiny_config.learning_rate = 1e30
    message = (
        r"the loss is (nan|inf) at step 2 \(epoch 1\), where the learning rate is 9\.83e\+29; "
        r"there is no checkpoint yet: .*lower learning_rate"
    )
    with pytest.raises(UserError, match=message):
        run(tiny_config, tmp_path / "W")
    assert not (tmp_path / "W" / "results.json").exists()


def test_parameters_that_are_not_finite_are_not_saved(tiny_config, tmp_path, monkeypatch):
    tiny_config.data.resident_gb = 0.0
    original = loop.make_train_step

    def broken(*args):
        step = original(*args)

        def poisoned(state, *rest):
            state, metrics = step(state, *rest)
            count = int(jax.tree.leaves(state.optimizer)[0])
            # Step 12 is the last, so no later loss shows that its parameters are not finite.
            factor = jnp.float32(jnp.nan if count == 12 else 1)
            return state._replace(trainable=jax.tree.map(lambda x: x * factor, state[0])), metrics

        return poisoned

    monkeypatch.setattr(loop, "make_train_step", broken)
    monkeypatch.setattr(jax, "transfer_guard", lambda _: nullcontext())
    message = r"is not finite at step 12 \(epoch 4\), .*; the checkpoint of epoch 2 is finite: "
    with pytest.raises(UserError, match=message):
        run(tiny_config, tmp_path / "W")
    assert [f.name for f in (tmp_path / "W" / "checkpoints").iterdir()] == ["6"]


def test_a_folder_that_holds_no_run_is_refused(tiny_config, tiny_clip_dir, tmp_path):
    """Uses the folder of a CLIP checkpoint, which has a config.json too."""
    with pytest.raises(UserError, match="does not belong to a run of fgvpl_jax"):
        run(tiny_config, tiny_clip_dir)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        experiment.evaluate(Workdir(tmp_path))


def test_checkpoints_without_their_config_are_refused(finished, tmp_path):
    config, path, _ = finished
    shutil.copytree(path, tmp_path / "W")
    (tmp_path / "W" / "config.json").unlink()
    with pytest.raises(UserError, match=r"without its config\.json"):
        run(config, tmp_path / "W")


def test_another_backbone_is_refused_before_the_first_checkpoint(finished, tmp_path):
    config, path, _ = finished
    (tmp_path / "W").mkdir()
    for name in ("config.json", "few_shot.json"):
        shutil.copy(path / name, tmp_path / "W")
    write_tiny_clip(tmp_path / "clip", seed=5)
    other = config.copy_and_resolve_references()
    other.clip = str(tmp_path / "clip")
    with pytest.raises(UserError, match="is not the one that"):
        run(other, tmp_path / "W")


def test_a_backbone_with_another_tokenizer_is_refused(finished, tiny_clip_dir, tmp_path):
    """With the same weights, its predictions would still differ."""
    config, path, _ = finished
    shutil.copytree(path, tmp_path / "W")
    shutil.copytree(tiny_clip_dir, tmp_path / "clip")
    vocabulary = json.loads((tmp_path / "clip" / "vocab.json").read_text())
    vocabulary["r"], vocabulary["g"] = vocabulary["g"], vocabulary["r"]
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(vocabulary))
    other = config.copy_and_resolve_references()
    other.clip = str(tmp_path / "clip")
    with pytest.raises(UserError, match="is not the one that"):
        run(other, tmp_path / "W")
    with pytest.raises(UserError, match="trained with backbone"):
        load_classifier(tmp_path / "W", clip=other.clip)


def test_a_failed_evaluation_changes_no_file(finished, photos_dir, tmp_path):
    config, path, _ = finished
    shutil.copytree(path, tmp_path / "W")
    shutil.copytree(photos_dir, tmp_path / "photos")
    for victim in (tmp_path / "photos" / "test").rglob("*.png"):
        victim.write_bytes(b"")
    moved = config.copy_and_resolve_references()
    moved.data.root = str(tmp_path / "photos")
    before = {p: p.read_bytes() for p in (tmp_path / "W").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="none of the 15 test images"):
        experiment.evaluate(Workdir(tmp_path / "W"), moved)
    assert {p: p.read_bytes() for p in (tmp_path / "W").rglob("*") if p.is_file()} == before


def test_an_unreadable_few_shot_image_stops_the_run(tiny_config, photos_dir, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos_dir, copy)
    for victim in (copy / "train" / "red_square").iterdir():
        victim.write_bytes(b"")
    tiny_config.data.root = str(copy)
    with pytest.raises(UserError, match=r"red_square/00"):
        run(tiny_config, tmp_path / "W")
    assert not (tmp_path / "W").exists()


def test_results_follow_from_the_saved_predictions_of_the_test_photos(finished, photos_dir):
    """Recomputes the scores from `predictions.npz` and compares its labels with the folders."""
    _, path, results = finished
    classes = sorted((photos_dir / "test").iterdir())
    expected = np.repeat(np.arange(3), [len(list(folder.iterdir())) for folder in classes])
    with np.load(path / "predictions.npz") as kept:
        np.testing.assert_array_equal(np.sort(kept["labels"]), expected)
        np.testing.assert_array_equal(np.sort(kept["indices"]), np.arange(15))
        right = kept["predicted"] == kept["labels"]
        zero_shot_right = kept["zero_shot_predicted"] == kept["labels"]
        per_class = [right[kept["labels"] == label].mean() for label in range(3)]
    assert results.test_images_read == results.counts.test == 15
    assert results.test_accuracy == pytest.approx(right.mean())
    assert results.test_mean_class_accuracy == pytest.approx(np.mean(per_class))
    assert results.zero_shot_accuracy == pytest.approx(zero_shot_right.mean())


@pytest.mark.parametrize("inside", ["", "runs/first"])
def test_a_workdir_among_the_photos_is_refused(tiny_config, tmp_path, inside):
    tiny_config.data.root = str(tmp_path / "photos")
    write_photo_folders(tmp_path / "photos", 3)
    place = tmp_path / "photos" / inside
    with pytest.raises(UserError, match="is in the folder of the photos"):
        experiment.train_and_evaluate(tiny_config, Workdir(place))
    assert len(list((tmp_path / "photos").iterdir())) == 3
    prepare.check_is_outside_photos(Workdir(tmp_path / "photos" / ".runs"), tiny_config)


def test_classes_without_a_test_photo_are_named(tiny_config, tmp_path, caplog):
    tiny_config.data.root = str(tmp_path)
    for split in ("train", "test"):
        write_photo_folders(tmp_path / split, 4)
    prepare.prepare(tiny_config, Workdir(tmp_path / "W"))
    assert "the test split" not in caplog.text
    missing = sorted((tmp_path / "test").iterdir())[0]
    shutil.rmtree(missing)
    prepare.prepare(tiny_config, Workdir(tmp_path / "W"))
    name = missing.name.replace("_", " ")
    assert f"no photo of 1 of the 3 classes, which its scores leave out: {name}" in caplog.text
