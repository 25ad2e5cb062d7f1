"""`bnkit bench certify`: bounds hold where the truth is known, and what is wrong is seen."""

import json
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from bnkit.bench.certify import SCHEMA, WORLDS, allowance, judge, run_certify
from bnkit.bench.certify_outcome import World, above
from bnkit.cli import main
from bnkit.core.bounds import clopper_pearson, kl_inverse
from bnkit.core.errors import CertificateError


def test_every_bound_holds_and_every_cheat_is_seen():
    seen = []
    report = run_certify(200, progress=lambda *a: seen.append(a[1:3]))
    wrong = [j for j in report.judgements if not j.passed]
    assert not wrong
    assert report.passed
    kinds = [j.kind for j in report.judgements]
    assert (kinds.count("bound"), kinds.count("cheat")) == (3 * 22, 3 * 8)
    assert seen == [(i, len(WORLDS)) for i in range(len(WORLDS) + 1)]
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema"] == SCHEMA
    assert document["passed"] is True
    assert document["judgements"][0]["passed"] is True


def test_the_simulation_has_teeth():
    """The binomial bound of a fixed predictor fails about as often as it may, and no oftener."""
    found = run_certify(2000, worlds=WORLDS[:1])
    for j in found.judgements:
        assert 0.7 * j.delta < j.violations / j.repeats < 1.2 * j.delta


def _binomial(factor):
    def run(rng, repeats, delta):
        k = rng.binomial(300, 0.1, repeats)
        return above(clopper_pearson(k, 300, min(factor * delta, 0.99)), 0.1)

    return run


def _midpoint(rng, repeats, delta):
    """What a bisection gives that returns its last middle after three halvings."""
    k = rng.binomial(300, 0.1, repeats)
    low, high = k / 300, np.asarray(kl_inverse(k / 300, -np.log(delta) / 300))
    return above(low + (high - low) / 8, 0.1)


@pytest.mark.parametrize("run", [_binomial(2), _midpoint])
def test_a_wrong_bound_falls_short(run):
    report = run_certify(2000, worlds=(World("wrong", "bound", run),))
    assert not any(j.passed for j in report.judgements if j.delta < 0.5)
    assert not report.passed
    assert report.judgements[0].cells()[-1] == "falls short"


def test_a_cheat_that_is_none_falls_short():
    honest = World("honest", "cheat", _binomial(1))
    assert not judge(honest, 500, 0.05, np.random.default_rng(0)).passed


def test_the_allowance_is_the_smallest():
    for repeats, delta in ((200, 0.05), (60, 0.5)):
        a = allowance(repeats, delta)

        def beyond(k, repeats=repeats, delta=delta):
            mass = (
                comb(repeats, i) * delta**i * (1 - delta) ** (repeats - i)
                for i in range(k + 1, repeats + 1)
            )
            return sum(mass)

        assert beyond(a) <= 0.001 < beyond(a - 1)


def test_a_seed_says_everything_and_worlds_do_not_disturb_each_other():
    some = (WORLDS[3], WORLDS[7])
    one, two = run_certify(50, 4, some), run_certify(50, 4, some[1:])
    assert one.judgements[3:] == two.judgements
    other = run_certify(50, 5, some[1:])
    assert other.judgements != two.judgements


def test_no_repeats_are_refused():
    with pytest.raises(CertificateError, match="repeats"):
        run_certify(0)


def test_the_command(capsys, monkeypatch, tmp_path):
    import bnkit.bench.certify as module

    path = tmp_path / "found.json"
    real = module.run_certify
    monkeypatch.setattr(
        module, "run_certify", lambda r, s, progress: real(r, s, WORLDS[:2], progress=progress)
    )
    assert main(["bench", "certify", "--repeats", "100", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["repeats"] == 100
    out = capsys.readouterr().out
    assert "hold-out, Clopper-Pearson" in out
    assert "100 repeats, seed 0" in out
    wrong = (replace(WORLDS[0], run=_binomial(3)),)
    monkeypatch.setattr(
        module, "run_certify", lambda r, s, progress: real(r, s, wrong, progress=progress)
    )
    assert main(["bench", "certify"]) == 1
    assert "falls short" in capsys.readouterr().out


def test_the_command_refuses(capsys, tmp_path):
    assert main(["bench", "certify", "--repeats", "0"]) == 2
    assert main(["bench", "certify", "--json", str(tmp_path / "no" / "where.json")]) == 1
    assert "expected a file that can be written" in capsys.readouterr().err
