"""The report of a run whose method was chosen by "auto"."""

import json

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


def test_the_report_says_what_auto_tried_and_why_it_chose(tmp_path):
    write_run(tmp_path / "runs" / "gda", 0.7, config={"method": "gda"})
    folder = write_run(tmp_path / "runs" / "auto", 0.72, config={"method": "gda"})
    for name in ("config.json", "results.json"):
        content = json.loads((folder / name).read_text())
        if name == "config.json":
            content["config"] |= {"method": "auto", "minutes": 1.0}
        else:
            content |= {"method": "auto", "tried": [EMPTY | one for one in TRIED]}
            content |= {"reason": "gda has the lowest held-out NLL", "cv_accuracy": 0.6}
            content |= {"cv_interval": [0.5, 0.7]}
        (folder / name).write_text(json.dumps(content))
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
