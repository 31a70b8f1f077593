"""Choices by both rules, and the photos that the temperature is fitted on."""

import numpy as np
import pytest

from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import score
from fgvpl_jax.inference.fit import config_for
from fgvpl_jax.methods import LabelledLogits
from fgvpl_jax.methods.held_out import HeldOutLogits, SelectionRule
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.selection import FEWEST_TO_CALIBRATE, calibration, nearest_first
from fgvpl_jax.runs.workdir import Workdir


def overconfident(count):
    """Returns logits that are right for two of three photos, and confident for all."""
    labels = np.arange(count) % 2
    guesses = np.where(np.arange(count) % 3 < 2, labels, 1 - labels)
    return LabelledLogits(np.eye(2)[guesses] * 8, labels)


def test_calibration_records_its_photos_and_its_improvement():
    photos = overconfident(300)
    found = calibration({"folds": photos})
    assert found["temperature_fitted_on"] == "folds"
    assert found["fitted_ece_before"] == pytest.approx(score(*photos).ece)
    assert found["fitted_ece_before"] > 0.3
    assert found["fitted_ece_after"] < 0.05


def test_no_temperature_is_fitted_on_too_few_photos():
    assert calibration({"validation": overconfident(FEWEST_TO_CALIBRATE - 1)}) == {}
    assert calibration({"validation": None}) == {}
    assert calibration({"validation": overconfident(FEWEST_TO_CALIBRATE)})


def test_all_held_out_photos_count():
    few = overconfident(FEWEST_TO_CALIBRATE // 2)
    empty = LabelledLogits(np.empty((0, 2)), np.empty(0, int))
    found = calibration({"held-out support": few, "validation": few, "folds": empty})
    assert found["temperature_fitted_on"] == "held-out support and validation"


def test_candidates_are_ordered_by_their_steps_from_the_start():
    grid = [{"alpha": a, "beta": b} for a in (0.0, 1.0, 5.0) for b in (1.0, 2.0)]
    found = nearest_first(grid, {"alpha": 1.0, "beta": 1.0})
    assert found[0] == {"alpha": 1.0, "beta": 1.0}
    # One of three values of alpha is nearer than one of two values of beta.
    assert {choices["alpha"] for choices in found[1:3]} == {0.0, 5.0}
    assert found[3] == {"alpha": 1.0, "beta": 2.0}


@pytest.mark.parametrize("rule", ["accuracy", "likelihood"])
def test_a_run_chooses_by_the_rule_of_its_config(rule, tiny_config, tmp_path):
    tiny_config.method = "tar"
    tiny_config.selection_rule = rule
    tiny_config.cache_logit_weight_grid = (0.0, 0.5, 1.0, 4.0, 50.0)
    results = experiment.train_and_evaluate(tiny_config, Workdir(tmp_path / "W"))
    run = prepare(tiny_config, Workdir(tmp_path / "W"))
    model, _ = experiment.restored_model(run)
    evaluator, _ = run.evaluator(model, run.few_shot.support)
    candidates = [{"cache_logit_weight": weight} for weight in (1.0, 0.5, 0.0, 4.0, 50.0)]
    judge, losses = None, []
    for choices in candidates:
        found = evaluator.predict(run.few_shot.validation, choices, name="validation")
        judge = SelectionRule(rule, np.empty(0, int), np.empty(0, int), found.labels)
        losses.append(judge.losses(HeldOutLogits(np.empty((0, 3)), found.logits)))
    assert results.choices == candidates[judge.choose(losses)]


def test_your_own_photos_are_chosen_by_likelihood_and_benchmarks_by_accuracy():
    assert config_for("photos", {}).selection_rule == "likelihood"
    assert config_for("photos", {"selection_rule": "accuracy"}).selection_rule == "accuracy"
    assert config_for("eurosat", {}).selection_rule == "accuracy"


def test_minutes_alone_mean_auto():
    config = config_for("eurosat", {"minutes": 3})
    assert (config.method, config.minutes) == ("auto", 3.0)
    assert config_for("eurosat", {"method": "gda", "minutes": 3}).method == "gda"
    assert config_for("eurosat", {}).method == "fg_vpl"
    assert config_for("photos", {}).method == "auto"
    assert config_named("folder").selection_rule == "likelihood"


def test_an_unknown_rule_is_refused(tiny_config, tmp_path):
    tiny_config.selection_rule = "luck"
    with pytest.raises(UserError, match="selection_rule is 'luck'"):
        prepare(tiny_config, Workdir(tmp_path / "W"))
