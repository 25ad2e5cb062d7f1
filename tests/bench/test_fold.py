"""Folded networks are timed beside what they came from."""

import json

import torch
from torch import nn

from bnkit.bench.fold import FOLDED, FX, KEPT, UNFOLDED, demonstrate, run_fold
from bnkit.bench.run import config_of
from tests.fold.networks import NETWORKS, lived


def test_report():
    config = config_of("quick", threads=1, patience=0)
    report = run_fold(config, {"ResNet-50": NETWORKS["ResNet-50"]})
    assert len(report.latencies) == 4
    for row in report.latencies:
        assert [t.provider for t in row.timings] == [UNFOLDED, FX, FOLDED, KEPT]
        assert row.ratio(UNFOLDED) == 1
        assert row.left == 0
        assert row.folded > 10
        assert row.relative_error <= 2e-6
        assert len(row.cells()) == 8
    json.dumps(report.to_dict(), allow_nan=False)


def test_demonstration():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    shown = demonstrate(net, torch.randn(2, 3, 8, 8), budget=0.05)
    assert shown.folding.proof.holds
    assert shown.speedup == shown.before / shown.after
    assert "times as fast" in str(shown)
