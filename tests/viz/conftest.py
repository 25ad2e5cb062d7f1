import importlib.util
from pathlib import Path

import pytest


@pytest.fixture
def demo():
    path = Path(__file__).parents[1] / "report" / "results_factory.py"
    spec = importlib.util.spec_from_file_location("results_factory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.demo_results()
