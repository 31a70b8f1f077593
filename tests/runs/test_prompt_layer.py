"""Runs whose prompt joins above layer 1."""

import numpy as np
import pytest

import fgvpl_jax as fg
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.export import export_classifier
from fgvpl_jax.training import PixelInputs
from tests.cases import further
from tests.whole_runs import interruption_in_epoch, metrics, run, without_times


@pytest.mark.parametrize(
    ("method", "layer", "attention_map"),
    [("fvp", 2, "border_contrast"), *further(("fg_vpl", 3, "product"))],
)
def test_a_run_trains_from_kept_tokens_resumes_and_predicts(
    tiny_config, tmp_path, photos_dir, monkeypatch, method, layer, attention_map
):
    tiny_config.method, tiny_config.prompt_layer = method, layer
    tiny_config.attention_map, tiny_config.augmented_passes = attention_map, 2
    tiny_config.data.image_cache_gb = 1
    tiny_config.data.image_cache_dir = str(tmp_path / "cache")
    results = run(tiny_config, tmp_path / "whole")
    # All tokens are kept now, so nothing is augmented again.
    monkeypatch.setattr(PixelInputs, "epoch", lambda *_, **__: pytest.fail("read pixels"))
    with interruption_in_epoch(4):
        run(tiny_config, tmp_path / "cut")
    resumed = run(tiny_config, tmp_path / "cut")
    assert without_times(resumed) == without_times(results)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")

    classifier = fg.load_classifier(tmp_path / "whole")
    predictions = classifier.predict(sorted((photos_dir / "test").rglob("*.png")), top_k=1)
    right = [p.class_names[0].replace(" ", "_") in p.name.replace(" ", "_") for p in predictions]
    assert np.mean(right) == pytest.approx(results.test_accuracy)
    assert predictions[0].location is not None
    assert export_classifier(classifier, tmp_path / "W.fgvpl").exists()


def test_a_prompt_above_the_last_layer_is_refused_before_anything_is_written(tiny_config, tmp_path):
    tiny_config.prompt_layer = 9
    with pytest.raises(UserError, match="prompt_layer is 9: give 1 to 3"):
        run(tiny_config, tmp_path / "W")
    tiny_config.prompt_layer = 0
    with pytest.raises(UserError, match="prompt_layer is 0: give 1 or more"):
        run(tiny_config, tmp_path / "W")


def test_augmented_passes_are_refused_where_no_tokens_are_kept(tiny_config, tmp_path):
    tiny_config.augmented_passes = 2
    with pytest.raises(UserError, match="augmented_passes is 2, which a prompt in layer 1 does"):
        run(tiny_config, tmp_path / "W")
