"""Predictions with several labels a photo, from Python and from the command line."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import fgvpl_jax as fg
from fgvpl_jax.commands import command_line
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference import multi_label
from fgvpl_jax.inference.multi_label import label_json, label_text
from fgvpl_jax.runs.label_run import prepare_labels
from fgvpl_jax.runs.multi_label import read_trained
from fgvpl_jax.runs.workdir import Workdir
from tests.label_lists import write_label_list


@pytest.fixture(scope="module")
def list_file(tmp_path_factory):
    return write_label_list(tmp_path_factory.mktemp("list"))


@pytest.fixture(scope="module")
def classifier(demo_clip_dir, list_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "W"
    return fg.fit_multi_label(list_file, clip=demo_clip_dir, workdir=path)


def test_predictions_are_those_of_the_run(classifier, list_file):
    run = prepare_labels(Workdir(classifier.workdir).stored_config(), Workdir(classifier.workdir))
    trained = read_trained(Workdir(classifier.workdir))
    test = run.dataset.test
    expected = trained.model.probabilities(run.features(test).features)
    found = classifier.predict([test.photos.path(i) for i in range(len(test.photos))], top_k=3)
    for prediction, row in zip(found, expected, strict=True):
        order = np.argsort(-row)
        assert prediction.class_names == tuple(classifier.class_names[c] for c in order)
        np.testing.assert_allclose(prediction.probabilities, row[order], atol=1e-4)
        assert prediction.labels == tuple(
            name
            for name, p in zip(prediction.class_names, prediction.probabilities, strict=True)
            if p >= classifier.thresholds[name]
        )


def test_a_loaded_run_predicts_the_same(classifier, list_file):
    loaded = fg.load_multi_label(classifier.workdir)
    photos = [list_file.parent / f"test_{i:03}.png" for i in range(4)]
    assert loaded.predict(photos) == classifier.predict(photos)
    assert loaded.results == classifier.results
    # However few classes are asked for, those that are assigned have their probability.
    for one, all_of_them in zip(
        loaded.predict(photos, top_k=1), loaded.predict(photos), strict=True
    ):
        assert one.labels == all_of_them.labels
        assert set(one.labels) <= set(one.class_names)


def test_loading_keeps_compiled_programs(classifier, monkeypatch):
    calls = []
    monkeypatch.setattr(multi_label, "keep_compiled_programs", lambda: calls.append(1))
    fg.load_multi_label(classifier.workdir)
    assert calls == [1]


def test_text_and_json_say_the_labels(classifier, list_file):
    by_number = {len(p.labels): p for p in classifier.predict(list_file.parent)}
    assert by_number.keys() >= {0, 2}
    first, *lines = label_text(by_number[2]).splitlines()
    assert first == by_number[2].name
    assert [line.split()[1] for line in lines] == list(by_number[2].labels)
    assert "no label; the most probable would be" in label_text(by_number[0])
    content = json.loads(label_json(list_file, by_number[2]))
    assert content["labels"] == list(by_number[2].labels)
    assert content["classes"][0].keys() == {"name", "probability", "threshold"}


def test_mistakes_are_explained(classifier, demo_clip_dir, tiny_clip_dir, list_file, tmp_path):
    with pytest.raises(UserError, match="top_k is 0"):
        classifier.predict(list_file.parent / "test_000.png", top_k=0)
    with pytest.raises(UserError, match="is not the one that"):
        fg.load_multi_label(classifier.workdir, clip=tiny_clip_dir)
    with pytest.raises(UserError, match="several labels a photo, which only training"):
        fg.load_classifier(classifier.workdir)
    with pytest.raises(UserError, match=r"in Python, fit_multi_label"):
        fg.fit(list_file, clip=demo_clip_dir, method="svm", workdir=tmp_path / "W")
    with pytest.raises(UserError, match="holds no run"):
        fg.load_multi_label(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"bad\.png"):
        classifier.predict([Image.new("RGB", (9, 9)), tmp_path / "bad.png"])


def command(capsys, *arguments):
    """Runs a command in this process; returns its exit code and output."""
    with flagsaver.flagsaver():
        left = command_line.parse_flags(["run.py", *map(str, arguments)])
        return command_line.main(left), capsys.readouterr()


def test_the_command_predicts_and_evaluates(classifier, list_file, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"bad")
    photo = list_file.parent / "test_000.png"
    run = f"--workdir={classifier.workdir}"
    code, output = command(capsys, run, "--mode=predict", photo)
    assert code == 0
    assert output.out.strip() == label_text(classifier.predict(photo)[0])
    code, output = command(capsys, run, "--mode=predict", "--json", photo, tmp_path / "bad.png")
    assert code == command_line.MISTAKE
    good, bad = map(json.loads, output.out.splitlines())
    assert good["labels"] == list(classifier.predict(photo)[0].labels)
    assert "bad.png" in bad["error"]
    assert "1 of 2 photos could not be read" in output.err
    code, output = command(capsys, run, "--mode=evaluate", "--num_processes=1")
    assert code == 0
    assert "of 16 test images" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=predict", "--overlay_dir=pictures", "."], "leave --overlay_dir out"),
        (["--mode=predict", "--regions", "--coco=new/R.json", "."], "leave --regions out"),
        (["--mode=export", "--output=F.fgvpl"], "several labels a photo, which only training"),
    ],
)
def test_other_commands_refuse_the_run_in_one_line(
    arguments, message, classifier, list_file, capsys, monkeypatch
):
    monkeypatch.chdir(list_file.parent)
    code, output = command(capsys, f"--workdir={classifier.workdir}", *arguments)
    assert code == command_line.MISTAKE
    assert output.err.startswith("error: ")
    assert message in output.err
    assert len(output.err.strip().splitlines()) == 1
    assert not (list_file.parent / "new").exists()
