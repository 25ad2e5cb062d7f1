"""Models that real exporters wrote: folded where it is allowed, with the outputs of ONNX Runtime."""

import pytest

from bnkit.fold.onnx import fold_onnx
from bnkit.fold.onnx.reading import read_source
from tests.fold.onnx_files import CASES, COUNTS, counts, feeds, path_of
from tests.fold.onnx_graphs import rewritten, run
from tests.tolerances import FRAMEWORK, relative_error


def test_every_case_has_an_expectation():
    assert COUNTS.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_onnxruntime(name):
    model = read_source(path_of(name)).model
    folded, records = rewritten(model)
    assert counts(records) == COUNTS[name], records
    if CASES[name]["refuse"]:
        assert {r.action for r in records} == {"refused"}
        assert folded.SerializeToString() == model.SerializeToString()
    for inputs, expected, index in feeds(name):
        assert relative_error(run(folded, **inputs)[index], expected) < FRAMEWORK


@pytest.mark.parametrize("name", ["opset9_convtranspose", "torch_export_dynamo", "external_data"])
def test_the_proof(name):
    ((inputs, _, _),) = feeds(name)
    folding = fold_onnx(path_of(name), inputs=inputs, engine="reference")
    assert counts(folding.records) == COUNTS[name]
    assert folding.proof.holds
    assert 0 < folding.proof.relative_error < 1e-5
    assert folding.proof.relative_error64 < 1e-13
    assert folding.external == (name == "external_data")


def test_training_form_is_refused_with_the_reason():
    folding = fold_onnx(path_of("torch_export_training"))
    assert not folding.proof.engine
    assert not folding.folded
    assert "0 of 2 batch norms folded; nothing was folded" in str(folding)
    assert "refused: training form: it has 5 outputs" in str(folding)
