"""Tables of runs written by hand; the expected means and deviations were computed on paper."""

import csv

import pytest

from fgvpl_jax.data import BENCHMARKS
from fgvpl_jax.reports import csv_files
from fgvpl_jax.reports.find_runs import read_runs
from fgvpl_jax.reports.panels import averages_of, panels_of, spread
from fgvpl_jax.reports.paper_numbers import paper_accuracy, paper_average
from fgvpl_jax.reports.tables import (
    average_table,
    backbone_table,
    gains_table,
    setting_tables,
    shots_table,
)
from tests.reports.run_folders import write_run

B16 = "clip-vit-base-patch16"
DEFAULTS = {
    "text_residual_ratio": 0.05,
    "object_logit_weight": 0.5,
    "object_query": "class_token",
}


def write_runs(root, rows, **fields):
    """Writes runs from {(method, shots): accuracies of seeds 1, 2, …}."""
    for (method, shots), accuracies in rows.items():
        for seed, accuracy in enumerate(accuracies, start=1):
            config = {"method": method, "shots": shots, "seed": seed, **fields.get("config", {})}
            place = root / f"{len(list(root.glob('*')))}"
            write_run(place, accuracy, **{**fields, "config": config})


def panels(root):
    records, _, left_out = read_runs([root], DEFAULTS)
    assert left_out == []
    return panels_of(records)


@pytest.fixture
def imagenet(tmp_path):
    rows = {
        ("fg_vpl", 1): (0.70, 0.71, 0.75),
        ("fg_vpl", 16): (0.74, 0.78),
        ("tip_adapter_f", 16): (0.73,),
    }
    write_runs(tmp_path, rows, zero_shot=0.687, config={"benchmark": "imagenet", "epochs": 20})
    return tmp_path


def test_deviation_is_of_the_sample():
    # The squared distances of 2, 4, 4, 4, 5, 5, 7, 9 from 5 add up to 32; 32 / 7 = 4.5714.
    assert spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == (5.0, pytest.approx(2.13809), 8)
    assert spread([3.0]) == (3.0, None, 1)


def test_methods_by_shots_with_the_papers_numbers(imagenet):
    (panel,) = panels(imagenet)
    table = shots_table(panel)
    assert table.columns == ["method", "1 shot", "16 shots"]
    assert table.rows == [
        ["Zero-shot CLIP", "68.70 (paper 68.7, +0.00)", "68.70 (paper 68.7, +0.00)"],
        ["Tip-Adapter-F", "-", "73.00 (paper 73.7, -0.70)"],
        # Squared distances: -2, -1 and 3 from 72 add up to 14; -2 and 2 from 76 add up to 8.
        ["FG-VPL", "72.00 ± 2.65 (paper 70.3, +1.70)", "76.00 ± 2.83 (paper 75.5, +0.50)"],
    ]
    assert table.notes == [
        "Accuracy on the test split in %, mean ± standard deviation over 3 seeds.",
        "Fewer seeds so far: Tip-Adapter-F at 16 shots: 1; FG-VPL at 16 shots: 2.",
        "Tip-Adapter-F: 20 epochs.",
        "FG-VPL: 20 epochs; the paper has 50.",
    ]


@pytest.mark.parametrize(
    "config",
    [{"benchmark": "eurosat"}, {"benchmark": "imagenet", "clip": "photo-clip-64"}],
)
def test_other_data_and_backbones_have_no_number_of_the_paper(tmp_path, config):
    write_runs(tmp_path, {("fg_vpl", 16): (0.7,)}, config=config)
    (panel,) = panels(tmp_path)
    assert "paper" not in str(shots_table(panel).rows)


def test_settings_that_all_runs_share_are_named_without_the_papers_number(tmp_path):
    config = {"benchmark": "imagenet", "object_query": "object_patches", "microbatch": 32}
    for alpha in (0.05, 0.1):
        alphas = config | {"text_residual_ratio": alpha}
        write_runs(tmp_path, {("fg_vpl", 16): (0.7,)}, config=alphas)
    recipe = {"learning_rate": 2e-3, "weight_decay": 5e-4, "batch_size": 32}  # CoOp's own
    write_runs(tmp_path, {("coop", 16): (0.7,)}, config={"benchmark": "imagenet"} | recipe)
    (panel,) = panels(tmp_path)
    table = shots_table(panel)
    assert [row[0] for row in table.rows[1:]] == [
        *("CoOp", "FG-VPL", "FG-VPL (text_residual_ratio=0.1)"),
    ]
    assert [row[1] for row in table.rows[1:]] == ["70.00 (paper 71.9, -1.90)", "70.00", "70.00"]
    assert table.notes[-1] == "FG-VPL: object_query=object_patches, which is not the default."
    assert "paper" not in str(setting_tables(panel)[0].rows)
    assert "paper" not in str(gains_table([panel]).rows)


def test_settings_that_are_lists_make_rows_and_are_named(tmp_path):
    for template in ("a {}.", "b {}."):
        config = {"data.templates": (template,), "cache_logit_weight_grid": (1.0, 2.0)}
        write_runs(tmp_path, {("fg_vpl", 16): (0.7,)}, config=config)
    defaults = DEFAULTS | {"cache_logit_weight_grid": [0.0, 1.0]}
    (panel,) = panels_of(read_runs([tmp_path], defaults)[0])
    assert [row.label for row in panel.rows] == [
        "FG-VPL (data.templates=('a {}.',))",
        "FG-VPL (data.templates=('b {}.',))",
    ]
    note = "FG-VPL: cache_logit_weight_grid=(1.0, 2.0), which is not the default."
    assert shots_table(panel).notes[-1] == note
    assert setting_tables(panel)[0].columns == ["method", "('a {}.',)", "('b {}.',)"]


def test_a_learning_rate_other_than_the_recipes_makes_a_row(tmp_path):
    for rate in (1e-3, 0.5):
        write_runs(tmp_path, {("fg_vpl", 16): (0.7,)}, config={"learning_rate": rate})
    (panel,) = panels(tmp_path)
    assert [row.label for row in panel.rows] == ["FG-VPL", "FG-VPL (learning_rate=0.5)"]


def test_epochs_that_change_with_shots_are_named_and_make_no_row(tmp_path):
    for shots, epochs in ((1, 100), (2, 100), (16, 400)):
        rows = {("fg_vpl", shots): (0.5,)}
        write_runs(tmp_path, rows, config={"epochs": epochs})
    (panel,) = panels(tmp_path)
    table = shots_table(panel)
    assert [row[0] for row in table.rows] == ["Zero-shot CLIP", "FG-VPL"]
    assert table.notes[-1] == (
        "FG-VPL: 100 epochs at 1 and 2 shots; 400 epochs at 16 shots; the paper has 400."
    )


def test_varied_settings_have_rows_and_the_shape_of_tables_4_and_5(tmp_path):
    for alpha, beta, accuracies in (
        (0.01, 0.5, (0.75, 0.77)),
        (0.05, 0.5, (0.76, 0.78)),
        (0.1, 0.5, (0.72,)),
        (0.05, 0.9, (0.6,)),
    ):
        config = {"benchmark": "imagenet", "text_residual_ratio": alpha}
        config["object_logit_weight"] = beta
        write_runs(tmp_path, {("fg_vpl", 16): accuracies}, config=config)
    (panel,) = panels(tmp_path)
    assert [row.label for row in panel.rows] == [
        "FG-VPL",
        "FG-VPL (object_logit_weight=0.9)",
        "FG-VPL (text_residual_ratio=0.01)",
        "FG-VPL (text_residual_ratio=0.1)",
    ]
    beta_table, alpha_table = setting_tables(panel)
    assert alpha_table.title.endswith("text_residual_ratio at 16 shots")
    assert alpha_table.columns == ["method", "0.01", "0.05", "0.1"]
    assert alpha_table.rows == [
        [
            "FG-VPL",
            "76.00 ± 1.41 (paper 75.2, +0.80)",
            "77.00 ± 1.41 (paper 75.5, +1.50)",
            "72.00 (paper 75.3, -3.30)",
        ]
    ]
    assert beta_table.columns == ["method", "0.5", "0.9"]
    assert beta_table.notes[0].endswith(f"below {panel.title}.")


def test_a_mean_over_draws_is_of_equal_settings(tmp_path):
    for seed, alpha, accuracy in ((1, 0.05, 0.9), (2, 0.05, 0.8), (3, 0.2, 0.3)):
        config = {"benchmark": "imagenet", "seed": seed, "text_residual_ratio": alpha}
        write_run(tmp_path / str(seed), accuracy, config=config)
    (panel,) = panels(tmp_path)
    assert shots_table(panel).rows[1:] == [
        ["FG-VPL", "85.00 ± 7.07 (paper 75.5, +9.50)"],
        ["FG-VPL (text_residual_ratio=0.2)", "30.00 (paper 75.1, -45.10)"],
    ]


def test_other_templates_have_no_number_of_the_paper_and_no_part_in_zero_shot(tmp_path):
    own = {"benchmark": "imagenet", "data.templates": ("a {}.",)}
    write_run(tmp_path / "own", 0.6, zero_shot=0.4, config=own)
    (panel,) = panels(tmp_path)
    table = shots_table(panel)
    assert table.rows == [["Zero-shot CLIP", "40.00"], ["FG-VPL", "60.00"]]
    assert table.notes[-1] == "FG-VPL: data.templates=('a {}.',), which is not the default."
    assert gains_table([panel]).rows[0][1] == "+20.00"
    default = own | {"data.templates": BENCHMARKS["imagenet"].templates}
    write_run(tmp_path / "default", 0.7, zero_shot=0.68, config=default)
    (panel,) = panels(tmp_path)
    assert [row[:2] for row in shots_table(panel).rows] == [
        ["Zero-shot CLIP", "68.00 (paper 68.7, -0.70)"],
        ["FG-VPL", "70.00 (paper 75.5, -5.50)"],
        ["FG-VPL (data.templates=('a {}.',))", "60.00"],
    ]


def test_templates_of_a_benchmark_that_is_not_the_papers_are_not_mixed(tmp_path):
    for template, zero_shot in (("a {}.", 0.2), ("b {}.", 0.6)):
        config = {"benchmark": "shapes", "data.templates": (template,)}
        write_run(tmp_path / template[0], 0.7, zero_shot=zero_shot, config=config)
    (panel,) = panels(tmp_path)
    table = shots_table(panel)
    assert table.rows[0] == ["Zero-shot CLIP", "20.00"]
    assert table.notes[-1] == "Zero-shot CLIP: data.templates=('a {}.',)."


def test_another_split_has_no_number_of_the_paper(tmp_path):
    own = {"benchmark": "imagenet", "data.split_file": "mine.json"}
    write_runs(tmp_path, {("fg_vpl", 16): (0.7,)}, config=own)
    (panel,) = panels(tmp_path)
    table = shots_table(panel)
    assert table.rows[1] == ["FG-VPL", "70.00"]
    assert table.notes[-1] == "FG-VPL: data.split_file=mine.json, which is not the default."


def test_epochs_that_differ_between_draws_make_a_row_of_their_own(tmp_path):
    for seed, epochs in ((1, 50), (2, 10)):
        config = {"benchmark": "imagenet", "seed": seed, "epochs": epochs}
        write_run(tmp_path / str(seed), 0.7, config=config)
    (panel,) = panels(tmp_path)
    assert [row[:2] for row in shots_table(panel).rows[1:]] == [
        ["FG-VPL", "70.00 (paper 75.5, -5.50)"],
        ["FG-VPL (epochs=10)", "70.00"],
    ]


def test_settings_of_some_shots_are_named_with_their_shots(tmp_path):
    write_runs(tmp_path, {("fg_vpl", 1): (0.5,), ("fg_vpl", 2): (0.5,)})
    write_runs(tmp_path, {("fg_vpl", 4): (0.5,)}, config={"object_query": "object_patches"})
    (panel,) = panels(tmp_path)
    note = "FG-VPL at 4 shots: object_query=object_patches, which is not the default."
    assert shots_table(panel).notes[-1] == note


def test_a_folder_named_like_a_benchmark_is_not_the_benchmark(tmp_path):
    config = {"benchmark": "", "data.source": "folder", "data.root": "photos/imagenet"}
    write_run(tmp_path / "run", 0.7, config=config)
    (panel,) = panels(tmp_path)
    assert panel.benchmark == "imagenet_folder"
    assert "paper" not in str(shots_table(panel).rows)


def test_averages_are_of_methods_that_were_run_on_every_benchmark(tmp_path):
    for benchmark, rows in {
        "eurosat": {("fg_vpl", 4): (0.8, 0.9), ("tip_adapter_f", 4): (0.7, 0.7)},
        "dtd": {("fg_vpl", 4): (0.4, 0.6), ("tip_adapter_f", 4): (0.5, 0.5), ("tar", 4): (0.9,)},
    }.items():
        zero_shot = {"eurosat": 0.5, "dtd": 0.4}[benchmark]
        write_runs(tmp_path, rows, zero_shot=zero_shot, config={"benchmark": benchmark})
    found = panels(tmp_path)
    (average,) = averages_of(found)
    table = average_table(average)
    # By seed: (80 + 40) / 2 and (90 + 60) / 2; the squares of -7.5 and 7.5 add up to 112.5.
    assert table.rows == [
        ["Zero-shot CLIP", "45.00"],
        ["Tip-Adapter-F", "60.00 ± 0.00"],
        ["FG-VPL", "67.50 ± 10.61"],
        ["FG-VPL above Tip-Adapter-F", "+7.50 ± 10.61"],
    ]


def test_a_lead_is_over_the_draws_that_both_methods_have(tmp_path):
    for benchmark in ("eurosat", "dtd"):
        rows = {("fg_vpl", 4): (0.8, 0.9), ("tip_adapter_f", 4): (0.7,)}
        write_runs(tmp_path, rows, config={"benchmark": benchmark})
    (average,) = averages_of(panels(tmp_path))
    assert average_table(average).rows[-1] == ["FG-VPL above Tip-Adapter-F", "+10.00"]


def test_backbones_are_columns_and_separate_if_only_their_hash_differs(tmp_path):
    config = {"benchmark": "imagenet"}
    b32 = config | {"clip": "openai/clip-vit-base-patch32"}
    write_runs(tmp_path, {("fg_vpl", 16): (0.7,)}, zero_shot=0.6, config=b32)
    write_runs(tmp_path, {("fg_vpl", 16): (0.76,)}, config=config, sha256="b" * 64)
    table = backbone_table(panels(tmp_path))
    assert table.columns == ["method", "clip-vit-base-patch16", "clip-vit-base-patch32"]
    assert table.rows[1] == ["FG-VPL", "76.00 (paper 75.5, +0.50)", "70.00 (paper 70.1, -0.10)"]
    assert [note.split(": ")[0] for note in table.notes] == list(table.columns[1:])
    write_runs(tmp_path, {("fg_vpl", 16): (0.1,)}, config=config, sha256="c" * 64)
    assert [panel.backbone for panel in panels(tmp_path)] == [
        "clip-vit-base-patch16@bbbbbbbb",
        "clip-vit-base-patch16@cccccccc",
        "clip-vit-base-patch32",
    ]


def test_gains_over_zero_shot(tmp_path):
    rows = {("fg_vpl", 1): (0.5,), ("fg_vpl", 16): (0.9, 0.94)}
    write_runs(tmp_path, rows, zero_shot=0.45)
    table = gains_table(panels(tmp_path))
    assert table.rows == [
        ["EuroSAT, clip-vit-base-patch16, 16 shots", "+47.00 ± 2.83 (paper +45.7, +1.30)"]
    ]


def test_a_run_counts_once_and_runs_that_are_left_out_are_named(tmp_path):
    write_run(tmp_path / "a" / "W", 0.5)
    write_run(tmp_path / "b" / "W", 0.5, config={"data.root": "elsewhere"})
    write_run(tmp_path / "photos", None)
    (write_run(tmp_path / "broken", 0.5) / "config.json").write_text("{")
    records, estimated, left_out = read_runs([tmp_path, tmp_path / "a"], DEFAULTS)
    assert len(records) == 1
    assert [record.folder.name for record in estimated] == ["photos"]
    assert len(left_out) == 1
    assert "broken" in left_out[0]


@pytest.mark.parametrize("other", [{"accuracy": 0.6}, {"accuracy": 0.5, "drawn": ("b.jpg",)}])
def test_runs_of_equal_settings_on_other_images_are_not_one_run(tmp_path, other):
    write_run(tmp_path / "a", 0.5, config={"data.root": "here"})
    write_run(tmp_path / "b", **other, config={"data.root": "there"})
    records, _, left_out = read_runs([tmp_path], DEFAULTS)
    assert [record.accuracy for record in records] == [50.0]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"{tmp_path / 'b'}: has the settings of {tmp_path / 'a'}, but")


def test_numbers_for_other_programs(imagenet, tmp_path):
    csv_files.write_accuracies(panels(imagenet), tmp_path / "accuracy.csv")
    with open(tmp_path / "accuracy.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    (row,) = [r for r in rows if (r["method"], r["shots"]) == ("fg_vpl", "16")]
    assert float(row["mean"]) == pytest.approx(76.0)
    assert float(row["deviation"]) == pytest.approx(8**0.5)
    assert (row["seeds"], row["paper"]) == ("2", "75.5")
    assert float(row["difference"]) == pytest.approx(0.5)
    assert float(row["gain"]) == pytest.approx(76.0 - 68.7)
    zero_shot = [r["paper"] for r in rows if r["method"] == "zero_shot"]
    assert zero_shot == ["68.7", "68.7"]


def test_numbers_of_tables_4_and_5_and_of_averages_and_gains(tmp_path):
    for benchmark in BENCHMARKS:
        rows = {("fg_vpl", 16): (0.8,), ("tip_adapter_f", 16): (0.7,)}
        write_runs(tmp_path, rows, config={"benchmark": benchmark})
    alpha = {"benchmark": "imagenet", "text_residual_ratio": 0.1}
    write_runs(tmp_path, {("fg_vpl", 16): (0.76,)}, config=alpha)
    found = panels(tmp_path)
    csv_files.write_accuracies([*found, *averages_of(found)], tmp_path / "accuracy.csv")
    with open(tmp_path / "accuracy.csv", newline="") as stream:
        rows = {
            (r["benchmark"], r["settings"]): r
            for r in csv.DictReader(stream)
            if r["method"] == "fg_vpl"
        }
    assert rows["imagenet", "text_residual_ratio=0.1"]["paper"] == "75.3"
    assert rows["eurosat", ""]["paper_gain"] == "45.7"
    average = rows["Average over 11 benchmarks", ""]
    assert float(average["mean"]) == pytest.approx(80.0)
    assert average["paper"] == str(paper_average(frozenset(BENCHMARKS), B16, "fg_vpl", 16))


def test_a_runs_line_has_the_validation_accuracy_of_the_chosen_values(tmp_path):
    write_run(tmp_path / "run", 0.5)
    csv_files.write_runs(read_runs([tmp_path], DEFAULTS)[0], tmp_path / "runs.csv")
    with open(tmp_path / "runs.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["validation_accuracy"], row["test_accuracy"]) == ("0.75", "0.5")


def test_the_papers_rows_with_a_resnet():
    resnet = "resnet50_clip.openai"
    assert paper_accuracy("imagenet", resnet, "tip_adapter_f", 16) == 65.5
    assert paper_accuracy("imagenet", resnet, "zero_shot", 1) == 60.3
    assert paper_accuracy("imagenet", resnet, "fg_vpl", 16) is None  # the paper has none
