"""Every line of the tables of "How to choose" runs, and what its row claims holds."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import bnkit
from bnkit.core import NonFiniteError, NonFiniteWarning

PAGE = Path(__file__).parents[2] / "docs" / "how-to-choose.md"
TEXT = PAGE.read_text(encoding="utf-8")
SETUP = re.search(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\| you (?:see|have) \| you write .*\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)
ROWS = [
    tuple(cell.strip() for cell in row.strip("|").split(" | ")[:2])
    for table in TABLE.findall(TEXT)
    for row in table.splitlines()
]


class Script:
    """The names that the page defines, fresh, and what a line printed."""

    def __init__(self):
        self.names = {"__name__": "how_to_choose"}
        exec(compile(SETUP[1], str(PAGE), "exec"), self.names)
        self.printed = ""
        self.value = None

    def __getattr__(self, name):
        try:
            return self.names[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def bn(self):
        return self.model.backbone[1]

    def run(self, line):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            if line.startswith("with "):
                exec(line, self.names)
            else:
                self.value = eval(line, self.names)
        self.printed = shown.getvalue()


def counted(script):
    return int(script.bn.num_batches_tracked)


def becomes_ours(script):
    assert type(script.torch_model.backbone[1]) is bnkit.nn.BatchNorm2d
    bnkit.nn.restore_(script.torch_model)
    assert type(script.torch_model.backbone[1]) is torch.nn.BatchNorm2d


def forgets_the_batch(script):
    y = script.model(script.x)
    torch.testing.assert_close(script.model(script.x[:1]), y[:1])
    bnkit.nn.replace_(script.model, to="batch")
    assert type(script.bn) is bnkit.nn.BatchNorm2d


def becomes_renormalization(script):
    assert type(script.bn) is bnkit.nn.BatchRenorm2d
    twin = network_with(script, bnkit.nn.BatchNorm2d(8))
    torch.testing.assert_close(script.model(script.x), twin(script.x))
    assert script.bn.renorm.limits.at(40_000).rmax == 3


def normalizes_groups(script):
    features = script.model.backbone[:2]
    for half in features(script.x).split(2):
        assert half.mean((0, 2, 3)).abs().max() < 1e-5


def becomes_plain(script):
    layer = script.ghosts.backbone[1]
    assert type(layer) is bnkit.nn.BatchNorm2d
    y = layer.eval()(torch.ones(4, 8, 2, 2))
    bnkit.nn.ghost_(layer, 2)
    assert torch.equal(layer.eval()(torch.ones(4, 8, 2, 2)), y)


def reaches_the_batch(script):
    layer = bnkit.nn.DifferentiableBatchNorm2d(3)
    y = layer(script.x)
    torch.testing.assert_close(script.value, y)
    query = layer.eval()(torch.randn(1, 3, 2, 2))
    assert torch.autograd.grad(query.sum(), script.x)[0].abs().sum() > 0


def network_with(script, norm):
    """The network of the page with another batch norm and the same weights."""
    twin = script.network(norm)
    twin.load_state_dict(script.model.state_dict(), strict=False)
    return twin


def normalizes_both_axes(script):
    assert script.value.mean((0, 2)).abs().max() < 1e-6


def takes_the_words_of_tensorflow(script):
    layer = script.value
    assert (layer.eps, layer.bias, layer.axis) == (1e-2, None, (1,))
    assert layer.momentum == pytest.approx(0.1)
    layer(script.x)


def gives_moments(script):
    mean, var = script.value
    torch.testing.assert_close(torch.from_numpy(mean), script.x.mean((0, 2, 3)))
    torch.testing.assert_close(torch.from_numpy(var), script.x.var((0, 2, 3), correction=0))


def normalizes_by_what_is_given(script):
    x = script.x
    expected = (x - x.mean()) / torch.sqrt(x.var() + 1e-3)
    torch.testing.assert_close(torch.from_numpy(script.value), expected)


def stays_frozen(script):
    script.model.train()
    script.model(script.x)
    assert counted(script) == 0
    assert script.bn.weight.requires_grad
    bnkit.nn.unfreeze_(script.model)
    script.model(script.x)
    assert counted(script) == 1


def freezes_parameters(script):
    assert not script.bn.weight.requires_grad
    bnkit.nn.unfreeze_(script.model)
    assert script.bn.weight.requires_grad


def leaves_no_trace(script):
    assert counted(script) == 0
    script.model(script.x)
    assert counted(script) == 1


def never_counts(script):
    script.model(script.x)
    assert counted(script) == 0


def counts_once_under_checkpointing(script):
    layer = script.torch_model.backbone[1]
    for reentrant in (True, False):
        before = int(layer.num_batches_tracked)
        x = script.x.clone().requires_grad_()
        checkpoint(script.torch_model, x, use_reentrant=reentrant).sum().backward()
        assert int(layer.num_batches_tracked) == before + 1


def counts_wherever_it_runs(script):
    x = script.x.clone().requires_grad_()
    checkpoint(script.model, x, use_reentrant=True).sum().backward()
    assert counted(script) == 2


def counts_with_the_step(script):
    assert counted(script) == 1
    scale, weight = script.scaler.get_scale(), script.bn.weight.clone()
    with torch.no_grad():
        script.model.head[2].weight.fill_(1e30)  # the loss overflows, the batch norm does not
    with bnkit.nn.commit_on_step(script.model, script.optimizer):
        script.train_step()
        assert counted(script) == 2
    assert counted(script) == 1
    assert script.scaler.get_scale() < scale
    assert torch.equal(script.bn.weight, weight)


def leaves_out_nan(script):
    with pytest.warns(NonFiniteWarning):
        script.torch_model(script.x * float("nan"))
    assert int(script.torch_model.backbone[1].num_batches_tracked) == 0
    assert script.torch_model.backbone[1].running_mean.isfinite().all()


def stops_at_nan(script):
    with pytest.raises(NonFiniteError, match=r"backbone\.1"):
        script.torch_model(script.x * float("nan"))


def ignores_padding(script):
    assert (script.value == 0).all(1).equal(torch.ones(4, 5).tril() == 0)
    assert script.value.mean((0, 2)).abs().max() < 1e-6


def is_synchronized(script):
    assert "synchronized=True" in repr(script.value.backbone[1])
    bnkit.nn.revert_sync_batchnorm(script.torch_model)
    assert type(script.torch_model.backbone[1]) is torch.nn.BatchNorm2d


def moves_once(script):
    assert counted(script) == 1
    expected = 0.1 * script.model.backbone[0](script.x).mean((0, 2, 3))
    torch.testing.assert_close(script.bn.running_mean, expected)


def equals_the_big_batch(script):
    moves_once(script)
    loss = script.model(script.x).pow(2).sum()
    torch.testing.assert_close(script.value.sum(), loss.detach())
    weight = script.bn.weight
    torch.testing.assert_close(weight.grad, torch.autograd.grad(loss, weight)[0])


def keeps_domains_apart(script):
    with bnkit.nn.domain(script.model, "night"):
        script.model(script.x)
    assert [int(script.bn.of(n).num_batches_tracked) for n in ("day", "night")] == [0, 1]
    bnkit.nn.keep_domain_(script.model, "day")
    assert counted(script) == 0


def normalizes_each_half(script):
    for half in script.value.split(2):
        assert half.mean((0, 2, 3)).abs().max() < 1e-6


def statistics_stayed(script):
    assert counted(script) == 0
    assert not script.bn.running_mean.any()
    assert (script.bn.running_var == 1).all()
    assert "forward" not in vars(script.bn)


def adapts_to_the_batch(script):
    statistics_stayed(script)
    x = script.x * 9 + 5
    features = script.model.backbone[:2]
    plain = features(x)
    with bnkit.nn.adapted(script.model, prior=16):
        mixed = features(x)
    share = 4 / 20
    values = script.model.backbone[0](x)
    var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    wanted = (1 - share) + share * var + share * (1 - share) * mean**2
    torch.testing.assert_close(mixed.var((0, 2, 3), correction=0), var / (wanted + 1e-5))
    assert not torch.allclose(plain, mixed)


def adapts_to_the_stream(script):
    statistics_stayed(script)
    with bnkit.nn.adapted(script.model, "ema", ema_weight=0.1, keep=True):
        script.model(script.x)
    mean = script.model.backbone[0](script.x).mean((0, 2, 3))
    torch.testing.assert_close(script.bn.running_mean, 0.1 * mean)


def becomes_certain(script):
    statistics_stayed(script)
    assert (script.bn.weight == 1).all()
    with bnkit.nn.tent(script.model) as t:
        optimizer = torch.optim.SGD(t.parameters, lr=0.1)
        before, after = (bnkit.nn.entropy(t.step(script.x, optimizer)).mean() for _ in range(2))
    assert after < before


def says_how_sure_it_is(script):
    statistics_stayed(script)
    assert script.found.samples.shape == (32, 4, 5)
    assert (script.found.std > 0).all()


def decorrelates(script):
    layer = bnkit.nn.WhitenedBatchNorm2d(3, method="newton", iterations=20)
    mixed = torch.einsum(
        "ij,njhw->nihw", torch.tensor([[1.0, 0.8, 0], [0, 1, 0], [0.5, 0, 1]]), script.x
    )
    y = layer(mixed)
    torch.testing.assert_close(
        y.transpose(0, 1).flatten(1).cov(correction=0), torch.eye(3), atol=1e-3, rtol=0
    )
    assert script.value.shape == script.x.shape


def shows_the_table(script):
    assert "backbone.1" in script.printed
    assert "each forward pass" in script.printed


def is_a(kind):
    def check(script):
        assert type(script.value) is kind

    return check


def names_a_kernel(script):
    assert "reference" in script.printed


def normalizes(script):
    torch.testing.assert_close(script.value.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)


def normalizes_arrays(script):
    assert abs(script.value[0].mean((0, 2, 3))).max() < 1e-6


def merges(script):
    torch.testing.assert_close(script.value.mean, script.x.mean((0, 2, 3)))


def is_keras(script):
    assert script.value.spec.eps == 1e-3


CHECKS = {
    "a model with `torch.nn` batch norms": becomes_ours,
    "a batch of 1 or 2 images, and statistics that are noise": forgets_the_batch,
    "batches of two to eight, or batches unlike each other: training is not what inference "
    "computes": becomes_renormalization,
    "very large batches that generalize worse than small ones": normalizes_groups,
    "one of these two, and something that wants the plain layer": becomes_plain,
    "a frozen backbone that thaws at the next `model.train()`": stays_frozen,
    "the same, and its weight and bias shall not be trained": freezes_parameters,
    "SAM, VAT: a second forward pass of the same batch": leaves_no_trace,
    "a teacher in training mode": never_counts,
    "activation checkpointing, and `num_batches_tracked` counts double": (
        counts_once_under_checkpointing
    ),
    "code that runs its first forward pass within a backward pass": counts_wherever_it_runs,
    "`GradScaler` skips a step, its batch was counted all the same": counts_with_the_step,
    "NaN in the running statistics after one bad batch": leaves_out_nan,
    "the same, and training shall stop there": stops_at_nan,
    "a forward pass that you may want to undo": leaves_no_trace,
    "padded sequences, whose padding enters the statistics": ignores_padding,
    "8 GPUs with a few images each, or processes on the CPU": is_synchronized,
    "accumulation: k micro-batches move the statistics k times": moves_once,
    "accumulation that shall equal the one big batch": equals_the_big_batch,
    "two domains with one network": keeps_domains_apart,
    "clean and adversarial images in one batch": normalizes_each_half,
    "data at inference unlike those of training: contrast, scanner, noise": adapts_to_the_batch,
    "the same, and neighbours in the stream are alike (sorted, video)": adapts_to_the_stream,
    "the same, and weights and biases shall adapt too (TENT)": becomes_certain,
    "predictions without a word on how sure they are": says_how_sure_it_is,
    "channels that say the same, and time to spend": decorrelates,
    "a loss that depends on inference after training, as in meta-learning": reaches_the_batch,
    "statistics that move, or do not, and you do not know why": shows_the_table,
    "a PyTorch model that you write": is_a(bnkit.nn.BatchNorm2d),
    "batch norm, a shortcut sum and ReLU, LeakyReLU or SiLU one after the other": is_a(
        bnkit.nn.BatchNormAct2d
    ),
    "a question which kernel runs, and why": names_a_kernel,
    "a tensor, and statistics of your own": normalizes,
    "channels on another axis, or on several": normalizes_both_axes,
    "a call of `tf.layers.batch_normalization`": takes_the_words_of_tensorflow,
    "a call of `tf.nn.moments`": gives_moments,
    "a call of `tf.nn.batch_normalization`": normalizes_by_what_is_given,
    "NumPy arrays, or arrays of another array-API library": normalizes_arrays,
    "data that comes in parts": merges,
    "a question what framework X computes": is_keras,
}


def test_every_row_has_a_check():
    assert [symptom for symptom, _ in ROWS] == list(CHECKS)


@pytest.mark.parametrize(("symptom", "cell"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_the_line_does_what_its_row_says(symptom, cell):
    (line,) = re.findall(r"^`([^`]+)`$", cell)
    script = Script()
    script.run(line)
    CHECKS[symptom](script)
