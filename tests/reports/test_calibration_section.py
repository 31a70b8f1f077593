"""The section of the report about the temperature, for runs written by hand."""

import json

from fgvpl_jax.reports.calibration_section import calibration_section
from fgvpl_jax.reports.find_runs import read_runs
from fgvpl_jax.reports.panels import panels_of
from tests.reports.run_folders import write_run


def write_scored_run(root, shots, seed, nll, ece):
    """Writes a run with NLL and ECE of the test images before and after the temperature."""
    folder = write_run(
        root / f"{shots}_{seed}", 0.5, config={"method": "tar", "shots": shots, "seed": seed}
    )
    file = folder / "results.json"
    scores = {"nll": nll, "ece": ece}
    changed = {
        f"test_{name}{when}": value
        for name, values in scores.items()
        for when, value in zip(("", "_tempered"), values, strict=True)
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_tables_have_the_means_before_and_after_the_temperature(tmp_path):
    write_scored_run(tmp_path, 1, 1, (2.0, 1.5), (0.2, 0.2))
    write_scored_run(tmp_path, 1, 2, (1.0, 0.9), (0.1, 0.1))
    write_scored_run(tmp_path, 4, 1, (1.0, 1.0), (0.1, 0.3))
    (panel,) = panels_of(read_runs([tmp_path], {})[0])
    section = calibration_section(panel, {})
    likelihood, error = section.tables
    assert likelihood.columns == ["method", "1 shot", "4 shots"]
    assert likelihood.rows == [["TAR alone", "1.500 → 1.200", "1.000"]]
    assert error.rows == [["TAR alone", "0.150", "0.100 → 0.300"]]
    (file,) = section.csv_files
    assert file.columns == ["method", "shots", "seed", "nll", "nll_tempered", "ece", "ece_tempered"]
    assert list(file.rows[0]) == ["TAR alone", 1, 1, 2.0, 1.5, 0.2, 0.2]
    assert len(file.rows) == 3
