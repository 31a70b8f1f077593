"""The scaling benchmark runs and counts the bytes that devices send."""

import json
from dataclasses import replace

from benchmarks import scaling
from benchmarks.measuring import report

HLO = """
  %all-reduce.1 = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}) all-reduce(%a, %b), to_apply=%add
  %gathered = pred[16]{0} all-gather(%c), dimensions={0}
  ROOT %sum = f32[100]{0} add(%d, %e)
  %fused = f32[7]{0} fusion(%all-reduce.1), calls=%all-reduce-scatter.fusion
"""


def test_the_bytes_of_collective_operations_are_counted():
    assert scaling.sent_by(HLO) == 4 * 6 + 2 * 4 + 16


def test_every_series_is_reported(monkeypatch, capsys):
    tiny = replace(scaling.TOWER, width=32, num_layers=2, num_heads=2, mlp_width=64, embed_dim=16)
    monkeypatch.setattr(scaling, "TOWER", tiny)
    monkeypatch.setattr(scaling, "SERIES", {"batch": (8, 16), "devices": (1, 2)})
    report(scaling.main(rounds=1))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["batch"] == [8, 16]
    assert result["batch_flops"][0] == result["batch_seconds"][0] == 1
    assert 1 < result["batch_flops"][1] < 2.1
    assert len(result["devices_mib_sent"]) == len(result["devices"])
