"""Statistics by domain: every domain is a plain batch norm."""

import copy
import pickle

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import ConversionError, InputError, SpecError
from bnkit.nn import DomainBatchNorm1d, DomainBatchNorm2d, add_domains_, domain, keep_domain_

LAYERS = {1: DomainBatchNorm1d, 2: DomainBatchNorm2d, 3: bnkit.nn.DomainBatchNorm3d}


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def network():
    torch.manual_seed(0)
    shared = bnkit.nn.BatchNormAct2d(4, act="silu", momentum=0.3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.Sequential(shared, nn.Conv2d(4, 4, 1), shared),
        bnkit.nn.BatchNorm2d(4),
    )


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_each_domain_is_a_plain_batch_norm(dimension):
    shape = (6, 3, *(4, 3, 2)[:dimension])
    layer = LAYERS[dimension](3, momentum=0.3, domains=("day", "night"))
    plain = {n: getattr(bnkit.nn, f"BatchNorm{dimension}d")(3, momentum=0.3) for n in layer.domains}
    for name in ("day", "night", "day"):
        x = torch.randn(*shape) + len(name)
        with domain(layer, name):
            exact(layer(x), plain[name](x))
        exact(layer(x, domain=name), plain[name](x))
    for name in layer.domains:
        assert type(layer.of(name)) is type(plain[name])
        for p, q in zip(layer.of(name).buffers(), plain[name].buffers(), strict=True):
            exact(p, q)
        exact(layer.eval()(x, domain=name), plain[name].eval()(x))
    assert int(layer.of("day").num_batches_tracked) == 4


def test_shared_and_separate_affine():
    separate = DomainBatchNorm1d(3, domains=("a", "b"))
    shared = DomainBatchNorm1d(3, domains=("a", "b"), share_affine=True)
    assert len(list(separate.parameters())) == 4
    assert len(list(shared.parameters())) == 2
    for layer in (copy.deepcopy(shared), pickle.loads(pickle.dumps(shared)), shared.double()):
        assert layer.of("a").weight is layer.of("b").weight
        for name in ("a", "b"):
            layer(torch.randn(4, 3).to(layer.of("a").weight.dtype), domain=name).pow(
                3
            ).sum().backward()
        assert layer.of("a").running_mean is not layer.of("b").running_mean
    x = torch.randn(4, 3)
    with domain(separate, "b"):
        separate(x).sum().backward()
    assert separate.of("a").weight.grad is None
    assert separate.of("b").weight.grad is not None
    assert len(list(DomainBatchNorm1d(3, affine=False, domains=("a",)).parameters())) == 0


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_several_domains_is_split(training):
    layer = DomainBatchNorm1d(3, domains=("clean", "adversarial", "other")).train(training)
    twin = copy.deepcopy(layer)
    x = torch.randn(8, 3)
    y = layer(x, domain=("adversarial", "clean"))
    exact(y, torch.cat([twin(x[:4], domain="adversarial"), twin(x[4:], domain="clean")]))
    with domain(layer, {"clean": 5, "other": 3}):
        y = layer(x)
    exact(y, torch.cat([twin(x[:5], domain="clean"), twin(x[5:], domain="other")]))
    for p, q in zip(layer.buffers(), twin.buffers(), strict=True):
        exact(p, q)


def test_arguments_are_split_too():
    norms = {n: bnkit.nn.MaskedBatchNorm1d(3) for n in ("a", "b")}
    layer = bnkit.nn.DomainBatchNorm(norms)
    twin = copy.deepcopy(layer)
    x, mask = torch.randn(6, 3, 4), torch.rand(6, 4) > 0.3
    expected = torch.cat([twin.of("a")(x[:3], mask[:3]), twin.of("b")(x[3:], mask[3:])])
    exact(layer(x, mask=mask, domain=("a", "b")), expected)
    act = bnkit.nn.DomainBatchNorm({n: bnkit.nn.BatchNormAct1d(3) for n in ("a", "b")})
    y = act(x, 2 * x, domain=("a", "b"))
    exact(y[3:], bnkit.nn.BatchNormAct1d(3)(x[3:], 2 * x[3:]))


def test_converting_a_model_and_back_is_exact():
    model = network()
    twin, layers = copy.deepcopy(model), [m for m in model.modules() if "Norm" in type(m).__name__]
    replaced = ("1", "2.0", "2.2", "3")
    assert sorted(add_domains_(model, ("clean", "adversarial")).replaced) == list(replaced)
    assert model[2][0] is model[2][2]
    assert add_domains_(model, ("clean", "adversarial")).replaced == ()
    x, other = torch.randn(4, 3, 6, 6), torch.randn(4, 3, 6, 6) + 3
    with domain(model, "adversarial"):
        exact(model(other), copy.deepcopy(twin)(other))
    with domain(model, "clean"):
        exact(model(x), twin(x))
        assert "domain='clean'" in repr(model)
    both = torch.cat([x, other])
    with domain(model.eval(), ("clean", "adversarial")):
        split = model(both)
    adversarial = copy.deepcopy(model)
    assert sorted(keep_domain_(model, "clean").replaced) == list(replaced)
    assert [m for m in model.modules() if "Norm" in type(m).__name__] == layers
    exact(model(x), twin.eval()(x))
    torch.testing.assert_close(split[:4], model(x))
    keep_domain_(adversarial, "adversarial")
    torch.testing.assert_close(split[4:], adversarial(other))
    assert list(adversarial.state_dict()) == list(twin.state_dict())


def test_the_context_is_left_as_it_was_found():
    model = network()
    add_domains_(model, ("a", "b"), default="a")
    x = torch.randn(4, 3, 6, 6)

    def fails():
        with domain(model, "b"):
            msg = "in the middle"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="in the middle"):
        fails()
    model(x)
    assert int(model[1].of("a").num_batches_tracked) == 1
    with domain(model, "b"):
        with domain(model, "a"):
            model(x)
        model(x)
    assert [int(model[1].of(n).num_batches_tracked) for n in "ab"] == [2, 1]


def test_with_the_other_members_of_the_family():
    model = network()
    add_domains_(model, ("a", "b"), default="a", share_affine=True)
    bnkit.nn.convert_sync_batchnorm(model)
    assert all(model[i].of(n)._part is not None for i in (1, 3) for n in "ab")
    bnkit.nn.revert_sync_batchnorm(model)
    assert type(model[1].of("b")) is nn.BatchNorm2d
    bnkit.nn.replace_(model)
    assert model[1].of("a").weight is model[1].of("b").weight
    x = torch.randn(8, 3, 6, 6)
    with bnkit.nn.accumulate(model), domain(model, "b"):
        for part in x.split(2):
            model(part)
    assert [int(model[1].of(n).num_batches_tracked) for n in "ab"] == [0, 1]


def test_state_dict_compile_and_export():
    torch._dynamo.reset()
    layer = DomainBatchNorm2d(3, domains=("a", "b"), default="b")
    assert "domain_a.running_mean" in layer.state_dict()
    twin = DomainBatchNorm2d(3, domains=("a", "b"), default="b")
    x = torch.randn(4, 3, 5, 5)
    layer(x)
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for name in ("a", "b", ("b", "a")):
        torch.testing.assert_close(compiled(x, domain=name), layer(x, domain=name))
    exact(twin.eval()(x), twin.of("b")(x))
    program = torch.export.export(twin, (x,))
    torch.testing.assert_close(program.module()(x), twin(x))
    half = twin.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert twin.of("a").running_mean.dtype == torch.float32


X = torch.randn(5, 3)
BAD = {
    "unknown": (
        {"domain": "nigth"},
        r"expected a known domain, got 'nigth'\. Known: 'day', 'night'\. Did you mean 'night'",
    ),
    "none": ({}, r"expected a domain, got none\. Known: 'day', 'night'"),
    "unknown part": ({"domain": ("day", "x")}, "got 'x'"),
    "no names": ({"domain": ()}, "each domain once"),
    "twice": ({"domain": ("day", "day")}, "each domain once"),
    "not divisible": (
        {"domain": ("day", "night")},
        r"whole numbers .*'night': 2\} for 5 samples.*domain=\{'day': n",
    ),
    "wrong sum": ({"domain": {"day": 3, "night": 3}}, "add up to the batch, got .* for 5 samples"),
    "negative": ({"domain": {"day": 6, "night": -1}}, "got .*-1.* for 5 samples"),
    "a fraction": ({"domain": {"day": 2.5, "night": 2.5}}, "whole numbers of samples"),
    "no name": ({"domain": 3}, "a sequence of names, or samples by name, got 3"),
    "number": ({"domain": {"day": 6, 3: -1}}, "got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_layer(case):
    given, message = BAD[case]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = DomainBatchNorm1d(3, domains=("day", "night"))

        def forward(self, x):
            return self.norm(x, **given)

    with pytest.raises(InputError, match=r"'norm' \(DomainBatchNorm1d\): .*" + message):
        Model()(X)
    if given:
        model = Model()
        known = case in {"not divisible", "wrong sum", "negative", "a fraction"}
        if known:
            return
        with (
            pytest.raises(InputError, match=r"'norm' \(DomainBatchNorm1d\): "),
            domain(model, given["domain"]),
        ):
            pass
        assert model.norm.domain is None


@pytest.mark.parametrize("names", ["day", (), ("a", "a"), ("a.b",), ("",), (1, 2)])
def test_bad_names(names):
    with pytest.raises(SpecError, match="different names of domains without dots"):
        DomainBatchNorm1d(3, domains=names)
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(SpecError, match="add_domains_"):
        add_domains_(model, names)
    assert type(model[0]) is nn.BatchNorm1d


def test_names_that_modules_have_already():
    layer = DomainBatchNorm1d(3, domains=("train", "eval", "weight", "forward"), default="train")
    assert layer(X).shape == X.shape


def test_refusals():
    with pytest.raises(InputError, match="known domain, got 'c'"):
        DomainBatchNorm1d(3, domains=("a", "b"), default="c")
    with pytest.raises(ConversionError, match="cannot be replaced in place"):
        add_domains_(nn.BatchNorm1d(3), ("a",))
    with pytest.raises(ConversionError, match=r"'0' \(LazyBatchNorm1d\)\. Run one batch"):
        add_domains_(nn.Sequential(nn.LazyBatchNorm1d()), ("a",))
    with pytest.raises(ConversionError, match=r"layer.of\('a'\)"):
        keep_domain_(DomainBatchNorm1d(3, domains=("a",)), "a")
    model = nn.Sequential(
        DomainBatchNorm1d(3, domains=("a",)), DomainBatchNorm1d(3, domains=("b",))
    )
    with pytest.raises(InputError, match=r"'0' \(DomainBatchNorm1d\): .*got 'b'"):
        keep_domain_(model, "b")
    assert type(model[1]) is DomainBatchNorm1d
    with pytest.raises(InputError, match="add_domains_"), domain(nn.Linear(2, 2), "a"):
        pass
