"""Every measured fault is named first, with its cause; healthy trainings give no error."""

import pytest
import torch

import bnkit
from bnkit.lab.faults import FAULTS, healthy_trainings
from bnkit.lab.threads import one_thread


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_finding_is_the_cause(name):
    with one_thread():
        patient = FAULTS[name]()
        found = bnkit.diagnose(patient.model, patient.data, patient.purpose, **patient.options)
    if patient.expected is None:
        assert not found.errors
        return
    first = found.findings[0]
    assert first.code == patient.expected
    if patient.cause is not None:
        assert first.found.cause == patient.cause


CHOSEN = [n for n in healthy_trainings() if n.endswith("seed 1") and "batch 4," not in n]


@pytest.mark.parametrize("name", CHOSEN)
def test_a_healthy_training_is_left_in_peace(name):
    with one_thread():
        patient = healthy_trainings()[name]()
        found = bnkit.diagnose(patient.model, patient.data)
    assert found.impact.before > 0.98, "it is not trained"
    assert not found.findings


def test_the_suite_holds_32_healthy_trainings():
    assert len(healthy_trainings()) == 32


def test_recalibration_repairs_lost_statistics_and_is_refused_where_it_hurts():
    from bnkit.doctor.mending import mend

    def mended_patient(name):
        patient = FAULTS[name]()
        return mend(
            patient.model,
            patient.data,
            recalibrate=lambda model: bnkit.recalibrate_(model, patient.data, batches=20),
        )

    with one_thread():
        mended = mended_patient("buffers lost")
        assert mended.refused is None
        assert mended.after.impact.before > mended.before.impact.before + 0.4
        assert "BN308" in mended_patient("trained in eval").refused
        assert "BN505" in mended_patient("pixels 0..16").refused
    assert torch.get_num_threads() >= 1
