"""The four runs of the tutorial, trained once."""

import pytest

from bnkit.lab.mofan import run_mofan


@pytest.fixture(scope="session")
def mofan():
    return run_mofan(profile=None)


@pytest.fixture(scope="session")
def runs(mofan):
    return {(run.activation, run.batch_norm): run for run in mofan.runs}
