"""Results to JSON and back."""

import json

import pytest

from bnkit.lab.plain import rebuild, to_plain
from bnkit.lab.record import MofanRun, TwinRun


def test_a_run_survives_json_exactly(runs):
    for run in runs.values():
        text = json.dumps(run.to_dict(), allow_nan=False)
        assert rebuild(MofanRun, json.loads(text)) == run


def test_none_inside_tuples_survives():
    run = TwinRun(1, 0.1, (10, 20), (None, 0.5), (0.1, 0.2), 0.9)
    assert rebuild(TwinRun, to_plain(run)) == run


def test_a_missing_field_is_named():
    with pytest.raises(KeyError, match="test_accuracy"):
        rebuild(TwinRun, {"seed": 1, "lr": 1, "steps": [], "train_loss": [], "val_accuracy": []})
