"""The cells of a sweep, their names, and configs that are refused before the first runs."""

import pytest

from configs import sweep, sweep_table4, sweep_table5
from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.errors import UserError
from fgvpl_jax.sweeps.cells import cells_of, sweep_config


@pytest.fixture
def small():
    config = sweep_config(("fg_vpl",))
    config.benchmarks = ("eurosat", "dtd")
    config.grid.shots = (1, 16)
    config.grid.seed = (1, 2)
    return config.lock()


def cells(config):
    return {cell.name: cell for cell in cells_of(config, config_named)}


def test_every_combination_once_and_one_seed_after_the_other(small):
    found = list(cells(small))
    where = "clip-vit-base-patch16/fg_vpl"
    assert found == [
        f"{benchmark}/{where}/shots={shots},seed={seed}"
        for seed in (1, 2)
        for benchmark in ("eurosat", "dtd")
        for shots in (1, 16)
    ]


def test_settings_come_from_the_grid_then_the_method_then_all_then_the_benchmark(small):
    cell = "eurosat/clip-vit-base-patch16/fg_vpl/shots=1,seed=1"
    assert cells(small)[cell].config.data.templates == ("a centered satellite photo of {}.",)
    small.run.epochs = 7
    small.run.weight_decay = 0.5
    small.run.data.root = "D"
    small.by_method.fg_vpl.epochs = 8
    small.by_method.fg_vpl.weight_decay = 0.25
    small.grid.weight_decay = (0.125,)
    (config,) = [c.config for c in cells(small).values() if c.name.startswith(cell)]
    assert (config.epochs, config.weight_decay, config.data.root) == (8, 0.125, "D")


def test_names_hold_only_settings_that_differ_so_sweeps_share_cells():
    plain = sweep.get_config()
    alpha, beta = sweep_table4.get_config(), sweep_table5.get_config()
    names = [set(cells(config)) for config in (plain, alpha, beta)]
    where = "imagenet/clip-vit-base-patch16/fg_vpl/shots=16,seed=3"
    assert [len(n) for n in names[1:]] == [15, 15]
    assert f"{where},text_residual_ratio=0.2" in names[1]
    assert f"{where},object_logit_weight=0.9" in names[2]
    assert where in names[0] & names[1] & names[2]


def test_values_that_do_not_fit_into_folder_names_stay_distinct(small):
    small.grid.data.templates = (("a {}/b",), ("a {}:b",), ("long " * 80 + "{}",))
    found = cells(small)
    assert len(found) == 3 * 8
    assert all(len(part) < 120 for name in found for part in name.split("/"))
    assert {name.count("/") for name in found} == {3}


def test_models_of_the_first_seed_at_the_most_shots_are_kept(small):
    kept = [cell.name for cell in cells(small).values() if cell.keeps_model]
    assert [name.rpartition("/")[2] for name in kept] == 2 * ["shots=16,seed=1"]
    small.keep_all_models = True
    assert all(cell.keeps_model for cell in cells(small).values())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("benchmarks", (), "values of benchmark are ()"),
        (
            "benchmarks",
            ("eurosatt",),
            "no benchmark 'eurosatt' in configs/: choose from caltech101",
        ),
        ("benchmarks", ("sweep",), "no benchmark 'sweep'"),
        ("grid.shots", (), "values of shots are ()"),
        ("grid.shots", (0,), "shots is 0"),
        ("grid.shots", ("many",), "sets shots to 'many'"),
        ("grid.method", ("fg_vlp",), "fg_vlp"),
        ("grid.clip", ("here/clip", "there/clip"), "'here/clip' and 'there/clip'"),
    ],
)
def test_invalid_sweeps_are_refused_at_once(small, field, value, message):
    small.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        cells_of(small, config_named)
    assert message in str(error.value)
