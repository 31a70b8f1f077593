"""Training is equal with and without microbatches."""

import pytest

from fgvpl_jax.runs import experiment
from fgvpl_jax.training import loop
from tests.cases import further
from tests.whole_runs import made_up_results, metrics, run


@pytest.mark.parametrize("resident_gb", [1.0, *further(0.0)])
def test_microbatches_that_do_not_divide_the_batch_train_equally(
    tiny_config, tmp_path, monkeypatch, resident_gb
):
    monkeypatch.setattr(loop, "default_microbatch", lambda *_: 2)
    layouts = []
    layout_of = loop.batch_layout

    def remembered(*arguments):
        layouts.append(layout_of(*arguments))
        return layouts[-1]

    monkeypatch.setattr(loop, "batch_layout", remembered)
    results = made_up_results()
    monkeypatch.setattr(experiment, "measure", lambda *_: results)  # only training is compared
    tiny_config.epochs, tiny_config.batch_size = 1, 5
    tiny_config.data.resident_gb = resident_gb
    trained = []
    for name, microbatch in (("parts", 0), ("whole", 5)):
        tiny_config.microbatch = microbatch
        run(tiny_config, tmp_path / name)
        trained.append(metrics(tmp_path / name))
    assert [(layout.num_rows, layout.num_passes) for layout in layouts] == [(6, 3), (5, 1)]
    for ours, whole in zip(*trained, strict=True):
        assert ours["loss"] == pytest.approx(whole["loss"], rel=1e-5)
