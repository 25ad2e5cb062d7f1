"""Monte-Carlo batch norm: one batch for all layers, draws by a generator, nothing left behind."""

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError, PolicyError
from bnkit.nn import monte_carlo
from tests.tolerances import FLOAT64


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2),
        bnkit.nn.BatchNormAct2d(5, act="relu"), nn.Flatten(), nn.Linear(45, 6),
        bnkit.nn.BatchNorm1d(6),
    ).double()  # fmt: skip


def batches(count=4, n=6):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64) + i for i in range(count)
    ]


def test_a_draw_normalizes_every_layer_as_training_on_that_batch():
    """What is predicted beside a batch is what training computes: the batch itself comes out."""
    model = network().eval()
    data = batches()
    with monte_carlo(model, data) as bank:
        assert len(bank) == 4
        assert bank.layers == ("1", "4", "7")
        predicted = []
        for number, batch in enumerate(data):
            bank.chosen = number
            predicted.append(model(batch))
        bank.chosen = None
        running = model(data[0])
    for batch, y in zip(data, predicted, strict=True):
        with bnkit.nn.no_update(model):
            torch.testing.assert_close(model.train()(batch), y, rtol=1e-9, atol=1e-9)
    assert torch.equal(model.eval()(data[0]), running)


def test_statistics_mixed_from_batches_are_not_those_of_any_pass():
    model = network().eval()
    data = batches()
    with monte_carlo(model, data) as bank:
        bank.chosen = 0
        y = model(data[0])
        bank._found[0]["4"] = bank._found[3]["4"]
        assert not torch.allclose(model(data[0]), y)


def test_the_same_generator_gives_the_same_samples():
    model, x = network().eval(), batches(1)[0]

    def draw(seed):
        with monte_carlo(model, iter(batches())) as bank:
            return bank.predict(x, samples=7, generator=torch.Generator().manual_seed(seed))

    a, b, c = draw(3), draw(3), draw(4)
    assert torch.equal(a.samples, b.samples)
    assert not torch.equal(a.samples, c.samples)
    assert a.samples.shape == (7, 6, 6)
    torch.testing.assert_close(a.mean, a.samples.mean(0))
    torch.testing.assert_close(a.std, a.samples.std(0))


def test_mean_and_spread_are_those_of_the_bank():
    """Of many draws: every batch weighs the same."""
    model, x = network().eval(), batches(1)[0][:2]
    with monte_carlo(model, batches()) as bank:
        each = []
        for bank.chosen in range(4):
            each.append(model(x))
        bank.chosen = None
        found = bank.predict(x, samples=4000, generator=torch.Generator().manual_seed(0))
        one = bank.predict(x, samples=1)
        assert bank.chosen is None
    each = torch.stack(each)
    error = 4 * each.std(0, correction=0) / 4000**0.5
    assert ((found.mean - each.mean(0)).abs() <= error + FLOAT64).all()
    torch.testing.assert_close(found.std, each.std(0, correction=0), rtol=0.05, atol=1e-9)
    assert not one.std.any()


def test_larger_batches_spread_less():
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    x = torch.randn(5, 3)
    spread = []
    for n in (32, 512):
        with monte_carlo(model, torch.randn(200, n, 3)) as bank:
            generator = torch.Generator().manual_seed(0)
            spread.append(bank.predict(x, samples=200, generator=generator).std.mean())
    assert 3 < spread[0] / spread[1] < 5.5  # 16 times the samples, a quarter of the spread


@pytest.mark.parametrize("training", [True, False])
def test_every_bit_is_as_before(training):
    model = network().train(training)
    bnkit.nn.freeze_(model[7])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    keys = [set(vars(m)) for m in model]
    drawn = torch.get_rng_state()
    with monte_carlo(model, batches()) as bank:
        assert bank.layers == ("1", "4")
        assert bank.kept == {"7": "it is frozen"}
        bank.predict(batches(1)[0], samples=3, generator=torch.Generator().manual_seed(0))
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    assert [set(vars(m)) for m in model] == keys
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training is training


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, y):
        return self.norm(x + y), y


def test_several_arguments_and_outputs():
    model, x = Two().eval(), torch.randn(4, 3)
    with monte_carlo(model, [(x, x), (x, -x + torch.randn(4, 3))]) as bank:
        with pytest.raises(InputError, match="gives one tensor, got tuple"):
            bank.predict(x, x)
        bank.chosen = 0
        torch.testing.assert_close(model(x, x)[0], nn.BatchNorm1d(3)(2 * x))


def test_what_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    cases = [
        (InputError, [], "expected batches of training data, got none"),
        (InputError, [torch.ones(1, 3)], r"'0' \(BatchNorm1d\): expected more than 1 value"),
        (InputError, [torch.randn(4, 3), torch.full((4, 3), float("nan"))], "'0': NaN or infinity in the statistics of batch 1"),
    ]  # fmt: skip
    for error, data, words in cases:
        with pytest.raises(error, match=words), monte_carlo(model, data):
            pass
        assert "forward" not in vars(model[0])
    with (
        pytest.raises(PolicyError, match="It has no batch norm"),
        monte_carlo(nn.Linear(2, 2), []),
    ):
        pass
    with monte_carlo(model, [torch.randn(4, 3)]) as bank:
        for samples in (0, 2.5):
            with pytest.raises(InputError, match=f"positive number of samples, got {samples}"):
                bank.predict(torch.randn(2, 3), samples=samples)
