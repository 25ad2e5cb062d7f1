"""Verdicts follow from the numbers: other numbers, other verdicts."""

from dataclasses import replace
from itertools import pairwise

import pytest

from bnkit.lab.claims import judge

EXPECTED = {
    "distributions-differ": "reproduced",
    "before-activation": "contradicted",
    "values-become-zero": "artefact",
    "neurons-are-dead": "artefact",
    "alive-with-bn": "reproduced",
    "cost-disappears": "reproduced",
    "all-saturated": "direction only",
    "later-layers-not-saturated": "reproduced",
}


def verdicts(runs):
    return {claim.id: claim.verdict for claim in judge(tuple(runs.values()))}


def changed(run, first=1, **values):
    """The run with other shares in its hidden layers after the first recorded step."""
    layers = [
        replace(
            layer,
            records=tuple(
                replace(r, **values) if layer.layer >= first and r.step else r
                for r in layer.records
            ),
        )
        for layer in run.layers
    ]
    return replace(run, layers=tuple(layers))


def test_verdicts_of_the_measured_runs(mofan, runs):
    assert verdicts(runs) == EXPECTED
    assert {c.id: c.verdict for c in mofan.claims} == EXPECTED


def test_quotes_are_the_tutorials_words_and_texts_are_in_both_languages(mofan):
    assert len({c.quote for c in mofan.claims}) == len(EXPECTED)
    for claim in mofan.claims:
        for text in (claim.claim, claim.measured):
            assert text.en.isascii() or "–" in text.en or "→" in text.en
            assert any("\u4e00" <= letter <= "\u9fff" for letter in text.zh)


def test_truly_dead_neurons_would_be_reproduced(runs):
    dead = changed(
        runs["relu", False],
        nan=0,
        nonfinite=0.0,
        zero=1.0,
        dead=1.0,
        zero_if_nan_is_zero=1.0,
    )
    found = verdicts({**runs, ("relu", False): dead})
    assert found["values-become-zero"] == "reproduced"
    assert found["neurons-are-dead"] == "reproduced"


def test_a_healthy_network_would_reproduce_nothing(runs):
    healthy = replace(runs["relu", True], batch_norm=False)
    found = verdicts({**runs, ("relu", False): healthy})
    for claim in ("values-become-zero", "neurons-are-dead", "cost-disappears"):
        assert found[claim] == "not reproduced"
    assert found["distributions-differ"] == "not reproduced"


def test_batch_norm_that_kills_or_overflows_would_not_be_alive(runs):
    for values in ({"dead": 0.6}, {"nonfinite": 0.01}):
        broken = changed(runs["relu", True], **values)
        assert verdicts({**runs, ("relu", True): broken})["alive-with-bn"] == "not reproduced"


@pytest.mark.parametrize(
    ("share", "verdict"), [(1.0, "reproduced"), (0.7, "direction only"), (0.1, "not reproduced")]
)
def test_saturation_without_batch_norm(runs, share, verdict):
    plain = changed(runs["tanh", False], saturated=share)
    assert verdicts({**runs, ("tanh", False): plain})["all-saturated"] == verdict


def test_saturation_of_a_network_without_finite_values_is_not_read_as_none_saturated(runs):
    lost = changed(runs["tanh", False], saturated=None, nonfinite=1.0)
    claims = judge(tuple({**runs, ("tanh", False): lost}.values()))
    claim = next(c for c in claims if c.id == "all-saturated")
    assert claim.verdict == "not reproduced"
    assert "no finite value" in claim.measured.en


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.05, "reproduced"), (0.3, "direction only"), (0.6, "not reproduced")]
)
def test_saturation_of_later_layers_with_batch_norm(runs, share, verdict):
    normal = changed(runs["tanh", True], first=2, saturated=share)
    found = verdicts({**runs, ("tanh", True): normal})
    assert found["later-layers-not-saturated"] == verdict


def test_one_value_below_0_would_mean_before_the_activation(runs):
    below = changed(runs["relu", True], negative=1)
    claims = {c.id: c for c in judge(tuple({**runs, ("relu", True): below}.values()))}
    assert claims["before-activation"].verdict == "reproduced"
    assert "35 of 630000 finite values" in claims["before-activation"].measured.en


def test_claim_of_the_distributions_tells_mean_and_variance(mofan):
    claim = mofan.claims[0]
    assert "the mean is" in claim.measured.en
    assert "the variance is" in claim.measured.en


def test_chinese_has_its_own_punctuation(mofan):
    for claim in mofan.claims:
        for text in (claim.claim.zh, claim.measured.zh):
            assert not {", ", "; ", ": ", " ("} & {a + b for a, b in pairwise(text)}
            assert text.endswith("。")
