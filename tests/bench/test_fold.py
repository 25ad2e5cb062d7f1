"""Folded networks are timed beside what they came from."""

import json
from time import sleep

import torch
from torch import nn

from bnkit.bench.fold import FOLDED, FX, KEPT, UNFOLDED, race, run_fold
from bnkit.bench.run import config_of
from bnkit.fold import fold
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


def test_race():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 8, 8)
    found = race(net, fold(net, x).model, x, budget=0.05)
    assert 0 < found.low <= found.ratio <= found.high
    assert found.rounds >= 7
    assert f"{found.ratio:.2f} of the time" in str(found)


class _Waiting(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        sleep(self.seconds)
        return x


def test_a_folded_network_that_is_slower_is_said_to_be():
    found = race(_Waiting(0.002), _Waiting(0.006), torch.zeros(1), budget=0.05)
    assert 1.5 < found.ratio < 4
    assert found.before < found.after
