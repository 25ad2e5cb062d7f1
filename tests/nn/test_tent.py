"""TENT and its guard: where adapting helps, where it ruins, and the way back."""

import math
from functools import partial

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError, PolicyError, SpecError
from bnkit.lab.data import digits
from bnkit.nn import CollapseGuard, adapted, entropy, tent, tent_parameters
from bnkit.nn.adapting.collapse_guard import _chi_squared


@pytest.fixture(scope="module")
def trained():
    """A network on digits, and the test part."""
    split = digits(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, bias=False), bnkit.nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(144, 48, bias=False), bnkit.nn.BatchNorm1d(48), nn.ReLU(),
            nn.Dropout(0.1), nn.Linear(48, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(6):
            for i in torch.randperm(len(split.train)).split(50):
                z = model(split.train.images[i])
                loss = nn.functional.cross_entropy(z, split.train.labels[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for p in model.parameters():
        p.grad = None
    return model.eval(), split.test


def stream(part, scale, ordered):
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(part), generator=generator)
    order = part.labels.argsort(stable=True) if ordered else order
    return [(part.images[i] * scale, part.labels[i]) for i in order.split(32)]


def error(predict, batches):
    return float(torch.cat([predict(x).argmax(1) != y for x, y in batches]).float().mean())


def error_of_tent(model, batches, guard=None, lr=1e-2):
    with tent(model, guard=guard) as t:
        return error(partial(t.step, optimizer=torch.optim.Adam(t.parameters, lr)), batches)


def test_it_helps_on_shifted_digits(trained):
    model, part = trained
    batches = stream(part, 0.3, ordered=False)
    guard = CollapseGuard()
    before = error(model, batches)
    with adapted(model, "batch"):
        by_statistics = error(model, batches)
    assert before > 0.25
    assert by_statistics < 0.06
    assert error_of_tent(model, batches, guard) < 0.06
    assert guard.alarms == []
    assert error(model, batches) == before


def test_sorted_digits_ruin_it_unless_it_is_guarded(trained):
    model, part = trained
    batches = stream(part, 1, ordered=True)
    assert error(model, batches) < 0.05
    assert error_of_tent(model, batches) > 0.5
    guard = CollapseGuard()
    # the first batch cannot be told from a stream of its own
    assert error_of_tent(model, batches, guard) < 0.05 + 32 / len(part)
    assert guard.suspended
    assert "scatter" in guard.alarms[0]
    guard = CollapseGuard()
    with adapted(model, "batch", guard=guard) as adaptation:
        assert error(model, batches) < 0.05 + 32 / len(part)
        assert adaptation.suspended


def test_an_alarm_undoes_the_steps_and_predicts_again(trained):
    model, part = trained
    batches = stream(part, 1, ordered=True)
    with tent(model, guard=CollapseGuard(window=2)) as t:
        optimizer = torch.optim.Adam(t.parameters, 1e-2)
        t.step(batches[0][0], optimizer)
        assert t.steps == 1
        first = [p.detach().clone() for p in t._first]
        assert not torch.equal(t.parameters[0], first[0])
        y = t.step(batches[8][0], optimizer)
        assert t.adaptation.suspended
        assert t.steps == 0
        assert not optimizer.state
        assert all(torch.equal(p, q) for p, q in zip(t.parameters, first, strict=True))
        t.reset()
        assert not t.adaptation.suspended
    torch.testing.assert_close(y, model(batches[8][0]).detach())


def test_adapting_resumes_after_a_calm_window(trained):
    model, part = trained
    mixed = [x for x, _ in stream(part, 1, ordered=False)]
    guard = CollapseGuard(window=3)
    with adapted(model, "batch", guard=guard) as adaptation:
        for x in [y for y, _ in stream(part, 1, ordered=True)][:4:3]:
            model(x)
        assert adaptation.suspended
        states = []
        for x in mixed[:5]:
            model(x)
            states.append(adaptation.suspended)
    assert states == [True, True, False, False, False]


def test_predictions_of_one_class_raise_an_alarm():
    guard = CollapseGuard(predictions=40)
    torch.manual_seed(0)
    for k in range(4):
        logits = torch.randn(20, 10)
        logits[:, 3] += 20 if k > 1 else 0
        guard.begin()
        assert (guard.judge(logits) is None) == (k < 3)
    assert guard.alarms == [
        "the mean of 40 predictions has 0.00 of the largest entropy (limit 0.5)"
    ]
    assert guard.judge("no logits") is None


def test_alarms_on_iid_streams_are_as_rare_as_promised():
    """100 streams of 10 batches: 900 verdicts with a probability of 1 % each, channels alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6)).eval()
    alarms = 0
    for _ in range(100):
        guard = CollapseGuard(false_alarm=0.01)
        with adapted(model, guard=guard):
            for _ in range(10):
                model(torch.randn(40, 1) * torch.ones(6) + 0.1 * torch.randn(40, 6))
        alarms += len(guard.alarms)
    assert 1 <= alarms <= 18


def test_the_quantile_of_chi_squared():
    from scipy.stats import chi2

    for freedom in (1, 2, 7, 20):
        for above in (1e-2, 1e-4, 1e-6):
            exact = chi2.isf(above, freedom)
            assert 0.99 * exact < _chi_squared(freedom, above) < 1.25 * exact


def test_only_weights_and_biases_of_batch_norms_are_trained(trained):
    model, part = trained
    x = part.images[:32]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    norms = {1, 4, 8}
    with tent(model) as t:
        assert len(t.parameters) == 6
        for name, p in model.named_parameters():
            assert p.requires_grad == (int(name.split(".")[0]) in norms), name
        optimizer = torch.optim.SGD(t.parameters, 0.1, momentum=0.9)
        t.step(x, optimizer)
        for name, v in model.state_dict().items():
            same = torch.equal(v, before[name])
            assert same == (int(name.split(".")[0]) not in norms or "run" in name or "num" in name)
    for name, v in model.state_dict().items():
        assert torch.equal(v, before[name]), name
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["3.weight"]
    model[0].weight.requires_grad_(True)
    model[3].weight.grad = None


def test_the_first_step_is_that_of_training_mode(trained):
    """The reference puts batch norms in training mode: the same loss, the same gradient."""
    model, part = trained
    x = part.images[:32] * 0.5
    parameters = tent_parameters(model)
    for m in model.modules():
        m.training = isinstance(m, nn.modules.batchnorm._BatchNorm)
    with bnkit.nn.no_update(model):
        loss = entropy(model(x)).mean()
        expected = torch.autograd.grad(loss, parameters)
    model.eval()
    first = [p.detach().clone() for p in parameters]
    with tent(model) as t:
        t.step(x, torch.optim.SGD(t.parameters, 1.0))
        for p, q, g in zip(t.parameters, first, expected, strict=True):
            torch.testing.assert_close(p, q - g, rtol=1e-4, atol=1e-6)


def test_episodes_are_independent(trained):
    model, part = trained
    x, other = part.images[:32], part.images[32:64]
    with tent(model, episodic=True) as t:
        optimizer = torch.optim.Adam(t.parameters, 1e-2)
        a = t.step(x, optimizer)
        t.step(other, optimizer)
        assert torch.equal(t.step(x, optimizer), a)
        assert t.steps == 1
        assert not torch.equal(t.parameters[0], t._first[0])


def test_kept_on_request_and_not_after_an_error(trained):
    model, part = trained
    before = model[1].weight.detach().clone()

    def fails():
        with tent(model, keep=True) as t:
            t.step(part.images[:32], torch.optim.SGD(t.parameters, 0.1))
            assert not torch.equal(model[1].weight, before)
            entropy(torch.ones(3))

    with pytest.raises(InputError, match="of at least 2 classes"):
        fails()
    assert torch.equal(model[1].weight, before)
    with tent(model, keep=True) as t:
        t.step(part.images[:32], torch.optim.SGD(t.parameters, 0.1))
        kept = model[1].weight.detach().clone()
    assert torch.equal(model[1].weight, kept)
    assert not torch.equal(kept, before)
    with torch.no_grad():
        for p, q in zip(t.parameters, t._first, strict=True):
            p.copy_(q)


def test_entropy_is_that_of_the_definition():
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    p = z.softmax(1)
    torch.testing.assert_close(entropy(z), -(p * p.log()).sum(1))
    assert float(entropy(torch.zeros(1, 8))[0]) == pytest.approx(math.log(8))
    assert entropy(torch.zeros(1, 8, dtype=torch.float16)).dtype == torch.float32


def test_what_is_refused(trained):
    model, part = trained
    with tent(model) as t:
        with pytest.raises(PolicyError, match="over the parameters of this object alone"):
            t.step(part.images[:8], torch.optim.SGD(model.parameters(), 0.1))
        with pytest.raises(PolicyError, match="got str"):
            t.step(part.images[:8], "sgd")
    with pytest.raises(PolicyError, match="expected batch norms with weight and bias"):
        tent_parameters(nn.BatchNorm1d(3, affine=False))
    with pytest.raises(InputError, match=r"got \(3, 1\)"):
        entropy(torch.ones(3, 1))
    for name, value in (("window", 1), ("predictions", 0), ("entropy", 1), ("false_alarm", 0)):
        with pytest.raises(SpecError, match=f"{name} must be .*, got {value}"):
            CollapseGuard(**{name: value})
    assert all(p.requires_grad for p in model.parameters())
