"""What two processes with gloo must agree on; `test_processes.py` starts them.

    python two_processes.py RANK FOLDER

Each check runs in both and is compared with one process that has all the data.
"""

import datetime
import json
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bnkit
from bnkit.core import InputError, NonFiniteError, SpecError, SynchronizationError
from tests.recalibration.data import assert_same_bits, batches, bits, network

TOLERANCE = 1e-6  # the bound of the issue
RANK = 0
DATA = batches(16, 5, 16, 9, 16)


def alone(model, data, **options):
    """The same in a group that holds this process only."""
    return bnkit.recalibrate(model, data, process_group=GROUPS[RANK], **options)


def same(found, expected):
    assert (found.batches, found.samples) == (expected.batches, expected.samples)
    for a, b in zip(found, expected, strict=True):
        assert a.status == b.status
        if a.new_mean is None:
            continue
        deviation = np.sqrt(b.new_var)
        assert (np.abs(a.new_mean - b.new_mean) / deviation).max() < TOLERANCE, a.name
        assert np.abs(a.new_var / b.new_var - 1).max() < TOLERANCE, a.name
        np.testing.assert_allclose(a.mean_margin, b.mean_margin, rtol=1e-6)
        np.testing.assert_allclose(a.var_margin, b.var_margin, rtol=1e-6)
        assert (a.count, a.calls) == (b.count, b.calls)


def any_split_into_batches():
    for mine in (DATA[RANK::2], DATA[:1] if RANK else DATA[1:], [] if RANK else DATA):
        same(bnkit.recalibrate(network(), mine), alone(network(), DATA))


def estimators_that_average():
    for estimator, data in (("cumulative", DATA), ("paper", batches(8, 8, 8))):
        found = bnkit.recalibrate(network(), data[RANK::2], estimator=estimator)
        same(found, alone(network(), data, estimator=estimator))


def consistent_with_a_split_within_batches():
    mine = [x[: len(x) // 3] if RANK else x[len(x) // 3 :] for x in DATA]
    found = bnkit.recalibrate(network(), mine, consistent=True)
    expected = alone(network(), DATA, consistent=True)
    for a, b in zip(found, expected, strict=True):
        assert (np.abs(a.new_mean - b.new_mean) / np.sqrt(b.new_var)).max() < TOLERANCE
        assert np.abs(a.new_var / b.new_var - 1).max() < TOLERANCE


def synchronized_layers_with_a_split_within_batches():
    mine = [x[: len(x) // 3] if RANK else x[len(x) // 3 :] for x in DATA]
    for convert in (bnkit.nn.convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm):
        found = bnkit.recalibrate(convert(network()), mine)
        expected = alone(network(), DATA)
        for a, b in zip(found, expected, strict=True):
            assert np.abs(a.new_var / b.new_var - 1).max() < TOLERANCE


def under_ddp_every_process_ends_with_the_same():
    model = DistributedDataParallel(network())
    bnkit.recalibrate_(model, DATA[RANK::2])
    for name, buffer in model.module.named_buffers():
        both = [torch.empty_like(buffer) for _ in range(2)]
        dist.all_gather(both, buffer)
        assert torch.equal(*both), name


def large_mean():
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(32, 4, generator=generator) + 1e4 + i for i in range(6)]
    found = bnkit.recalibrate(nn.BatchNorm1d(4), data[RANK::2])[""]
    var = torch.cat(data).double().var(0).numpy()
    assert np.abs(found.new_var / var - 1).max() < TOLERANCE


def complex_values():
    model = bnkit.nn.BatchNorm1d(2, dtype=torch.complex64)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(8, 2, dtype=torch.complex64, generator=generator) for _ in range(4)]
    for estimator in ("pooled", "cumulative"):
        found = bnkit.recalibrate(model, data[RANK::2], estimator=estimator)[""]
        expected = alone(model, data, estimator=estimator)[""]
        np.testing.assert_allclose(found.new_mean, expected.new_mean, rtol=1e-10)
        np.testing.assert_allclose(found.new_var, expected.new_var, rtol=1e-10)


def an_error_in_one_process_stops_both():
    model = network()
    data = [x.clone() for x in DATA[RANK::2]]
    before = bits(model)
    if RANK:
        data[1][0] = float("nan")
    error, message = (
        (NonFiniteError, "NaN or infinity in batch 1")
        if RANK
        else (SynchronizationError, "rank 1 of 2 failed")
    )
    with pytest.raises(error, match=message):
        bnkit.recalibrate_(model, data)
    assert_same_bits(model, before)


def models_that_differ():
    model = nn.BatchNorm1d(2 + RANK)
    with pytest.raises(SynchronizationError, match=r"same number of channels.* got 2, 3 for ranks"):
        bnkit.recalibrate(model, [torch.randn(4, 2 + RANK)])


def no_data_anywhere():
    with pytest.raises(InputError, match="at least one batch"):
        bnkit.recalibrate(network(), [])


def what_depends_on_the_order_is_refused():
    for options in ({"tolerance": 0.1}, {"estimator": "ema"}):
        with pytest.raises(SpecError, match="depends on the order of the data"):
            bnkit.recalibrate(network(), DATA, **options)


def interrupted_and_continued():
    path, calls = FOLDER / "state", iter(range(100))

    def forward(model, batch):
        if next(calls) == 1:
            raise OSError("the disk is gone")
        return model(batch)

    expected = alone(network(), DATA)
    with pytest.raises(InputError, match="the disk is gone"):
        bnkit.recalibrate(network(), DATA[RANK::2], save=path, forward=forward)
    dist.barrier()
    assert sorted(p.name for p in FOLDER.glob("state*")) == ["state.rank0", "state.rank1"]
    dist.barrier()
    same(bnkit.recalibrate(network(), DATA[RANK::2], save=path, forward=forward), expected)
    dist.barrier()
    assert not list(FOLDER.glob("state*"))


CHECKS = [
    any_split_into_batches,
    estimators_that_average,
    consistent_with_a_split_within_batches,
    synchronized_layers_with_a_split_within_batches,
    under_ddp_every_process_ends_with_the_same,
    large_mean,
    complex_values,
    an_error_in_one_process_stops_both,
    models_that_differ,
    no_data_anywhere,
    what_depends_on_the_order_is_refused,
    interrupted_and_continued,
]


def main(rank, folder):
    global RANK, GROUPS, FOLDER
    RANK, FOLDER = rank, folder
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*autograd.function.Function.* should not be inst")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    GROUPS = [dist.new_group([r]) for r in range(2)]
    found = {}
    for check in CHECKS:
        try:
            check()
            found[check.__name__] = None
        except BaseException:
            found[check.__name__] = traceback.format_exc()
        (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
