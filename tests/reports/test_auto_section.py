"""The report of a run whose method was chosen by "auto"."""

import json
import re
from urllib.parse import unquote

from fgvpl_jax.reports.report import write_report
from tests.reports.run_folders import write_run

TRIED = [
    {"method": "svm", "seconds": 1.2, "nll": 1.25, "accuracy": 0.5, "weight": 0.25},
    {"method": "gda", "seconds": 100.0, "nll": 0.75, "accuracy": 0.625, "weight": 0.75},
    {"method": "fvp", "predicted_seconds": 8000.0, "note": "not tried: needs about 2 h 13 min"},
]
EMPTY = {
    **{"predicted_seconds": None, "seconds": 0.0, "nll": None, "accuracy": None},
    **{"weight": 0.0, "temperature": 1.0, "choices": {}, "note": ""},
}


def make_auto(folder, **fields):
    """Turns a run into one with the method "auto" and these fields of its results."""
    stored = json.loads((folder / "config.json").read_text())
    stored["config"] |= {"method": "auto", "minutes": 1.0}
    (folder / "config.json").write_text(json.dumps(stored))
    results = json.loads((folder / "results.json").read_text())
    results |= {"method": "auto", "tried": [EMPTY | one for one in TRIED], **fields}
    (folder / "results.json").write_text(json.dumps(results))


def test_runs_without_a_test_split_are_reported(tmp_path):
    config = {"benchmark": "my photos", "method": "gda"}
    write_run(tmp_path / "runs" / "second", None, config=config)
    make_auto(write_run(tmp_path / "runs" / "first", None, config=config), reason="gda is the best")
    lines = write_report(tmp_path, [tmp_path / "runs"])
    assert lines[-1].startswith("2 runs")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# 2 runs on my photos")
    section = text.split("Estimated by cross-validation")[1]
    assert "my photos (no test split)" in section
    assert "| runs/first | Auto | 1 | " in section
    assert "50.00% | 40.0% to 60.0% | 50.00%" in section
    assert "Chosen: gda is the best." in section
    assert "Estimate 50.00% (95% interval 40.0 to 60.0)." in section
    for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (tmp_path / "report" / unquote(picture)).is_file()


def test_the_report_says_what_auto_tried_and_why_it_chose(tmp_path):
    write_run(tmp_path / "runs" / "gda", 0.7, config={"method": "gda"})
    folder = write_run(tmp_path / "runs" / "auto", 0.72, config={"method": "gda"})
    estimate = {"cv_accuracy": 0.6, "cv_interval": [0.5, 0.7]}
    make_auto(folder, reason="gda has the lowest held-out NLL", **estimate)
    lines = write_report(tmp_path, [tmp_path / "runs"])
    assert lines[-1].startswith("2 runs")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| Auto |" in text
    section = text.split("What auto tried")[1]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]][-3:] == ["gda", "svm", "fvp"]
    assert "0.750 | 62.5% | 2 min | 0.75" in section
    assert "not tried: needs about 2 h 13 min" in section
    assert "Chosen: gda has the lowest held-out NLL." in section
    assert "Estimate 60.00% (95% interval 50.0 to 70.0), test accuracy 72.00%." in section
