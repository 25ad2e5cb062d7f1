"""The network that leaves training in the demo, in ONNX Runtime."""

import pytest

from bnkit.lab import TwinConfig, run_leaving

pytestmark = pytest.mark.frameworks
ort = pytest.importorskip("onnxruntime", reason="`make test-frameworks` installs ONNX Runtime")


def test_the_exported_files_run_there(tmp_path):
    config = TwinConfig(seeds=(1, 2), steps=100, record_every=50)
    export = run_leaving(config, 1.0, folder=tmp_path).export
    assert export.engine.startswith(f"onnxruntime {ort.__version__}")
    assert export.without is None
    assert [(file.norms, file.problem) for file in export.files] == [
        (4, None),
        (0, None),
        (0, None),
    ]
    for file in export.files:
        assert file.relative_error <= 2e-6
        options = {"providers": ["CPUExecutionProvider"]}
        assert (
            ort.InferenceSession(tmp_path / file.file, **options).get_inputs()[0].name == "images"
        )
