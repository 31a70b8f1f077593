"""`RunResults`: writing, reading and refusing results.json, and its documentation."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import LearningCurve, MaskIoU
from fgvpl_jax.methods import METHODS
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.results import ONLY_WITH_TEST_SPLIT, SPREAD, RunResults
from fgvpl_jax.runs.workdir import Workdir
from tests.whole_runs import made_up_results

ROOT = Path(__file__).parents[2]
OLD_RESULTS = ROOT / "tests" / "fixtures" / "run_0_1_0" / "results.json"
WITH_TEST = made_up_results(
    method="fg_vpl",
    choices={"cache_logit_weight": 2.0},
    mask_iou=MaskIoU(0.5, 0.1, 0.2, 0.3),
    learning_curve=LearningCurve((1.0, 2.5), (0.5, 0.6), 3.0, 0.6, 0.7, (0.6, 0.8)),
    unreadable=("a.jpg: not an image",),
)
WITHOUT_TEST = replace(
    made_up_results(
        method="linear_probe", facts={"inverse_regularisation": 0.5, "gradient_norm": 1e-8}
    ),
    **dict.fromkeys((*ONLY_WITH_TEST_SPLIT, "shots")),
    cv_accuracy=0.5,
    cv_mean_class_accuracy=0.5,
    cv_nll=1.0,
    cv_ece=0.1,
    cv_interval=(0.4, 0.6),
    temperature_fitted_on="folds",
    fitted_ece_before=0.2,
    fitted_ece_after=0.1,
)


@pytest.mark.parametrize("results", [WITH_TEST, WITHOUT_TEST], ids=["test", "cross-validated"])
def test_results_are_read_as_they_were_written(results, tmp_path):
    workdir = Workdir(tmp_path / "W")
    results.write(workdir)
    assert RunResults.read(workdir) == results


def test_results_of_version_0_1_0_keep_every_key_in_order():
    text = OLD_RESULTS.read_text()
    results = RunResults.from_json(json.loads(text), OLD_RESULTS)
    assert results.choices == {"cache_logit_weight": 1.0}
    assert results.facts == {}
    assert results.counts.test == 600
    assert json.dumps(results.to_json(), indent=2, ensure_ascii=False) + "\n" == text


def test_results_from_before_small_files_had_a_hash_are_read():
    content = json.loads(OLD_RESULTS.read_text())
    del content["backbone"]["small_files_sha256"]
    backbone = RunResults.from_json(content, OLD_RESULTS).backbone
    assert backbone.small_files_sha256 == ""
    assert backbone.sha256.startswith("19fb0ea2")


def test_fields_of_a_method_are_at_the_top_level_and_unset_fields_are_left_out():
    content = WITHOUT_TEST.to_json()
    assert list(content)[8:14] == [
        *("counts", "inverse_regularisation", "gradient_norm"),
        *("validation_accuracy", "validation_unreadable", "temperature"),
    ]
    assert content["test_accuracy"] is content["shots"] is None
    assert content["cv_interval"] == [0.4, 0.6]
    assert not content.keys() & {*SPREAD, "mask_iou", "test_nll", "test_images_read"}
    assert not WITH_TEST.to_json().keys() & {"cv_accuracy", "cv_interval", "fitted_ece_before"}


def test_an_unknown_key_is_read_as_a_fact(tmp_path):
    content = WITH_TEST.to_json() | {"kept_prompts": [1, 2]}
    results = RunResults.from_json(content, tmp_path)
    assert results.facts == {"kept_prompts": [1, 2]}
    assert results.choices == {"cache_logit_weight": 2.0}


def test_no_choice_of_a_method_has_the_name_of_a_field():
    names = {field.name for field in fields(RunResults)}
    for method in METHODS.values():
        assert not names & method.starting_choices(get_config()).keys()


@pytest.mark.parametrize(
    ("results", "path", "value", "message"),
    [
        (WITH_TEST, ("test_nll",), None, "the field test_nll is missing"),
        (WITH_TEST, ("cache_logit_weight",), None, "the field cache_logit_weight is missing"),
        (WITH_TEST, ("method",), None, "the field method is missing"),
        (WITH_TEST, ("counts", "test"), None, r"the field counts\.test is missing"),
        (WITH_TEST, ("counts", "tests"), 1, r"the field counts\.tests is unknown"),
        (WITH_TEST, ("backbone", "sha256"), 3, r"the field backbone\.sha256 is 3"),
        (WITH_TEST, ("mask_iou", "random"), "x", r"the field mask_iou\.random is 'x'"),
        (WITH_TEST, ("learning_curve", "now"), None, r"the field learning_curve\.now is missing"),
        (WITH_TEST, ("epochs",), 1.5, r"the field epochs is 1\.5"),
        (WITH_TEST, ("seed",), True, "the field seed is True"),
        (WITH_TEST, ("test_accuracy",), "0.5", "the field test_accuracy is '0.5'"),
        (WITH_TEST, ("unreadable",), "a.jpg", "the field unreadable is 'a.jpg'"),
        (WITH_TEST, ("validation_accuracy", "λ"), [], r"the field validation_accuracy\.λ is \[\]"),
        (WITHOUT_TEST, ("cv_interval",), None, "the field cv_interval is missing"),
        (WITHOUT_TEST, ("cv_interval",), [0.5], r"the field cv_interval is \[0\.5\]"),
    ],
)
def test_a_damaged_field_is_named_with_its_file(tmp_path, results, path, value, message):
    """Removes the field if the value is None."""
    workdir = Workdir(tmp_path)
    content = json.loads(json.dumps(results.to_json()))
    *outer, name = path
    place = content[outer[0]] if outer else content
    place.pop(name, None)
    if value is not None:
        place[name] = value
    workdir.write(workdir.results_file, content)
    with pytest.raises(UserError, match=rf"results\.json is damaged \({message}\)"):
        RunResults.read(workdir)


def test_every_field_is_documented_and_every_documented_field_exists():
    page = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    section = page.split("## Results of a run\n")[1].split("\n## ")[0]
    documented = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", section, re.M)))
    names = [field.name for field in fields(RunResults)]
    assert sorted(documented) == sorted(names)
    described = re.findall(r"^        (\w+): ", RunResults.__doc__, re.M) or re.findall(
        r"^    (\w+): ", RunResults.__doc__, re.M
    )
    assert described == names
