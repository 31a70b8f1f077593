"""A run of version 0.1.0 stays readable; it was trained on drawn scenes with the CLIP of demo/."""

import json
import shutil
from pathlib import Path

import pytest

import fgvpl_jax as fg
from fgvpl_jax.errors import UserError
from fgvpl_jax.reports.report import write_report
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.workdir import FORMAT, Workdir

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "demo" / "clip"


@pytest.fixture
def old_run(tmp_path):
    """Returns a copy of the old run, which a test may change."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "run_0_1_0", tmp_path / "W")
    return Workdir(tmp_path / "W")


def change(workdir, edit):
    """Applies a function to the content of config.json."""
    content = json.loads(workdir.config_file.read_text())
    edit(content)
    workdir.config_file.write_text(json.dumps(content))


def test_an_old_run_predicts(old_run):
    classifier = fg.load_classifier(old_run.path, clip=CLIP)
    assert classifier.results.test_accuracy == 0.42
    predictions = classifier.predict(ROOT / "demo" / "scenes", top_k=10)
    assert len(predictions) == 6
    for prediction in predictions:
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        assert set(prediction.class_names) == set(classifier.class_names)
        assert len(prediction.similar) > 0
        assert 0 < prediction.location.object_mask.mean() < 1


def flat(content, prefix=""):
    """Maps the path of each number and text in a JSON object to its value."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {prefix: content}
    return {k: v for name, one in content.items() for k, v in flat(one, f"{prefix}/{name}").items()}


def test_evaluating_an_old_run_again_returns_the_same_results(old_run):
    before = json.loads(old_run.results_file.read_text())
    config = old_run.stored_config()
    config.clip = str(CLIP)
    experiment.evaluate(old_run, config)
    after = json.loads(old_run.results_file.read_text())
    # Version 0.1.0 fitted no temperature on ten photos.
    for content in (before, after):
        for name in ("temperature", "temperature_fitted_on", "fitted_ece_before"):
            content.pop(name, None)
        for name in ("fitted_ece_after", "test_nll_tempered", "test_ece_tempered"):
            content.pop(name, None)
    assert after.pop("none_of_these")["held_out_photos"] == 10
    assert list(after) == list(before)
    assert after["backbone"].pop("name") == str(CLIP)
    del before["backbone"]["name"], before["wall_seconds"], after["wall_seconds"]
    # Rounding differs between CPUs; on the same CPU the numbers are equal to the last bit.
    measured, expected = flat(after), flat(before)
    assert measured.keys() == expected.keys()
    for path, value in expected.items():
        assert measured[path] == (
            pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        ), path
    assert json.loads(old_run.config_file.read_text()).get("format") is None


def test_a_report_shows_an_old_run(old_run, tmp_path):
    # Without this file the report draws no pictures, which would need the CLIP.
    old_run.support_file.unlink()
    lines = write_report(tmp_path / "out", [old_run.path])
    assert not any(str(old_run.path) in line for line in lines)
    assert "42.00" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_a_field_that_an_old_config_lacks_has_its_default(old_run, tmp_path):
    def remove(content):
        del content["config"]["calibrate"], content["config"]["data"]["resident_gb"]

    expected = old_run.stored_config()
    change(old_run, remove)
    assert old_run.stored_config().to_dict() == expected.to_dict()
    old_run.check_is_free_for(expected)  # the run resumes
    expected.calibrate = False
    with pytest.raises(UserError, match=r"calibrate \(True there, False now\)"):
        old_run.check_is_free_for(expected)
    fg.load_classifier(old_run.path, clip=CLIP)
    old_run.support_file.unlink()
    lines = write_report(tmp_path / "out", [old_run.path])
    assert not any(str(old_run.path) in line for line in lines)


def test_a_missing_number_of_the_recipe_is_refused(old_run):
    change(old_run, lambda content: content["config"].pop("epochs"))
    with pytest.raises(UserError, match=r"is damaged \(the field epochs is missing\)"):
        old_run.stored_config()


def test_an_unknown_field_is_refused_by_name(old_run, tmp_path):
    def add(content):
        content["config"]["sharpness"] = 1
        content["config"]["data"]["colours"] = 3

    change(old_run, add)
    message = rf"version {fg.__version__} of fgvpl_jax does not know, data\.colours, sharpness: use"
    with pytest.raises(UserError, match=message):
        fg.load_classifier(old_run.path, clip=CLIP)
    with pytest.raises(UserError, match=message):
        experiment.evaluate(old_run)
    with pytest.raises(UserError, match=r"data\.colours, sharpness"):
        write_report(tmp_path / "out", [old_run.path])


def test_a_newer_format_is_refused(old_run, tmp_path):
    change(old_run, lambda content: content.update(format=99))
    message = rf"has format 99, and version {fg.__version__} .* up to {FORMAT}: use a newer version"
    with pytest.raises(UserError, match=message):
        fg.load_classifier(old_run.path, clip=CLIP)
    with pytest.raises(UserError, match=message):
        old_run.stored_backbone()
    with pytest.raises(UserError, match="has format 99"):
        write_report(tmp_path / "out", [old_run.path])


@pytest.mark.parametrize("value", [0, True, "2", None, 2.0])
def test_a_format_that_is_no_positive_integer_is_refused(old_run, value):
    change(old_run, lambda content: content.update(format=value))
    with pytest.raises(UserError, match="does not belong to a run of fgvpl_jax"):
        old_run.stored_config()


def test_a_new_config_names_its_format(old_run):
    config, backbone = old_run.stored_config(), old_run.stored_backbone()
    config.clip = str(CLIP)
    old_run.write_config(config, backbone)
    assert list(json.loads(old_run.config_file.read_text())) == ["format", "config", "backbone"]
    assert json.loads(old_run.config_file.read_text())["format"] == FORMAT == 2
    assert old_run.stored_config().to_dict() == config.to_dict()


def test_old_results_are_read(old_run):
    results = RunResults.read(old_run)
    assert results.mask_iou.object_mask == pytest.approx(0.3185550322788201)
    assert results.test_accuracy == 0.42
