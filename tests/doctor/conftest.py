import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("patients", Path(__file__).parent / "patients.py")


@pytest.fixture(scope="session")
def patients():
    module = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(module)
    return module
