"""What other tools fold wrongly or not at all: never an error here, and a reason where refused."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations

import bnkit
from tests.fold.networks import batch_norms, lived
from tests.fold.test_networks import FLOAT32, fold


class TwoNorms(nn.Module):
    """One convolution, two batch norms: torch.fx folds it twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.a(self.conv(x)) - self.b(self.conv(x + 1))


class WrongAxis(nn.Module):
    """A linear layer on (N, L, C) and BatchNorm1d, whose channels are L: with L == C."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.linear(x))


def wrong_by(model, x, tool):
    with torch.no_grad():
        expected, got = model(x), tool(model)(x)
    return float((got - expected).abs().max() / expected.abs().max())


def test_shared_convolution():
    model, x = lived(TwoNorms()), torch.randn(2, 3, 8, 8)
    assert wrong_by(model, x, fuse) > 0.1  # the error of torch.fx that this is about
    folding = fold(model, x)
    assert folding.kept == ("a", "b")
    assert "used without it elsewhere" in folding.records[0].reason


def test_linear_whose_length_equals_its_channels():
    model, x = lived(WrongAxis()), torch.randn(4, 6, 5)
    assert wrong_by(model, x, fuse) > 0.1
    folding = fold(model, x)
    assert folding.kept == ("norm",)
    assert "channels at the last dimension" in folding.records[0].reason


def test_linear_folded_for_two_dimensions_refuses_three():
    folding = fold(lived(WrongAxis()), torch.randn(4, 5))
    assert folding.folded == ("norm",)
    with pytest.raises(bnkit.core.InputError, match="'norm'.*expected input with"):
        folding.model(torch.randn(4, 6, 5))


@pytest.mark.parametrize("how", ["transpose", "permute", "flatten", "mT_reshape_as"])
def test_linear_with_its_channels_moved(how):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)

        def forward(self, x):
            y = self.linear(x)
            if how == "transpose":
                return self.norm(y.transpose(1, 2)).transpose(1, 2)
            if how == "permute":
                return self.norm(y.permute(0, 2, 1)).mean(2)
            if how == "flatten":
                return self.norm(y.flatten(0, 1))
            return self.norm(y.flatten(0, 1)).reshape_as(y)

    for length in (6, 4):
        assert fold(lived(Net()), torch.randn(3, length, 5)).folded == ("norm",)


@pytest.mark.parametrize(
    ("order", "folded"), [((0, 1, 2), ()), ((2, 1, 0), ()), ((1, 2, 0), ("norm",))]
)
def test_permutations_are_followed(order, folded):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(self.linear(x).permute(*order))

    assert fold(lived(Net()), torch.randn(6, 6, 6)).folded == folded


def test_linear_without_affine_parameters():
    net = lived(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False)))
    with pytest.raises(TypeError):
        fuse(net)
    assert fold(net, torch.randn(8, 5)).folded == ("1",)


class ShapeDependent(nn.Module):
    """The batch norm runs for large images only."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) if x.shape[2] > 8 else y


def test_control_flow_that_depends_on_the_shape():
    folding = fold(lived(ShapeDependent()), torch.randn(1, 3, 16, 16))
    assert folding.kept == ("norm",)
    small = torch.randn(1, 3, 6, 6)
    model = lived(ShapeDependent())
    assert torch.equal(fold(model, torch.randn(1, 3, 16, 16)).model(small), model(small))


class ValueDependent(nn.Module):
    """Both ways use the same pair: that is safe to fold."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        if x.sum() > 0:
            return torch.relu(self.norm(self.conv(x)))
        if x.ndim != 4:
            raise ValueError("four dimensions")
        return self.norm(self.conv(-x))


def test_control_flow_that_depends_on_values_but_not_for_the_pair():
    model = lived(ValueDependent())
    folding = fold(model, torch.randn(1, 3, 8, 8))
    assert folding.folded == ("norm",)
    for x in (torch.ones(1, 3, 8, 8), -torch.ones(1, 3, 8, 8)):
        assert torch.allclose(folding.model(x), model(x), atol=1e-6)


class Loop(nn.Module):
    """Code that cannot be followed at all, around a block that can."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        for _ in range(int(x.shape[2] // 4)):
            x = self.block(x)
        return self.norm(self.conv(x))


def test_code_that_cannot_be_followed():
    folding = fold(lived(Loop()), torch.randn(1, 4, 8, 8))
    assert folding.folded == ("block.1",)
    assert folding.kept == ("norm",)
    assert "cannot be followed" in folding.records[1].reason
    assert "" in folding.opaque


def test_type_tests_that_symbols_mislead():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.a(x) if type(x) is torch.Tensor else self.b(x)
            return self.norm(y)

    folding = fold(lived(Net()), torch.randn(1, 3, 4, 4))
    assert folding.kept == ("norm",)
    assert "ran another way" in folding.opaque[""]


class Reused(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.a(x)) * self.norm(self.b(x))


def test_reused_batch_norm():
    folding = fold(lived(Reused()), torch.randn(1, 3, 8, 8))
    assert folding.kept == ("norm",)
    assert "several places" in folding.records[0].reason


def test_reused_pair_is_one_pair():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x):
            return self.pair(self.pair(x))

    assert fold(lived(Net()), torch.randn(1, 4, 8, 8)).folded == ("pair.1",)


def test_output_used_elsewhere():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) * y.shape[0] + y

    folding = fold(lived(Net()), torch.randn(2, 3, 4, 4))
    assert folding.kept == ("norm",)
    assert "elsewhere" in folding.records[0].reason


def test_running_statistics_off_and_training_mode():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4),
    )  # fmt: skip
    net = lived(net)
    net[3].train()
    x = torch.randn(4, 3, 8, 8)
    with pytest.raises(bnkit.BatchNormError, match="eval mode"):
        bnkit.fold(lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train(), x)
    folding = bnkit.fold(net, x, check=False)
    assert folding.folded == ("5",)
    assert "normalizes with those of the batch" in folding.refused["1"]
    assert "training mode" in folding.refused["3"]


@pytest.mark.parametrize("what", ["hook", "norm hook", "parametrization", "tied", "forward"])
def test_layers_that_others_depend_on(what):
    net = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    if what == "hook":
        net[0].register_forward_hook(lambda _m, _a, result: result * 2)
    elif what == "norm hook":
        net[1].register_forward_hook(lambda _m, _a, result: result * 2)
    elif what == "parametrization":
        parametrizations.weight_norm(net[0])
    elif what == "tied":
        net[3].weight = net[0].weight
    else:
        conv = net[0]
        conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 2
    folding = fold(net, torch.randn(2, 4, 5, 5))
    assert not folding.folded
    words = {"hook": "hooks", "norm hook": "hooks", "parametrization": "parametrized",
             "tied": "shares a tensor", "forward": "replaced in the instance"}  # fmt: skip
    assert words[what] in folding.records[0].reason


def test_a_weight_that_other_code_reads():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) + self.conv.weight.sum() + self.norm.bias.sum()

    folding = fold(lived(Net()), torch.randn(1, 3, 4, 4))
    assert not folding.folded
    assert "also used by" in folding.refused["norm"]


def test_a_subclass_with_a_forward_pass_of_its_own():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    folding = fold(lived(nn.Sequential(nn.Conv2d(3, 4, 1), Doubled(4))), torch.randn(1, 3, 4, 4))
    assert "Doubled has a forward pass of its own" in folding.refused["1"]
    net = lived(nn.Sequential(Standardized(3, 4, 1), nn.BatchNorm2d(4)))
    folding = fold(net, torch.randn(1, 3, 4, 4))
    assert "Standardized has a forward pass of its own" in folding.records[0].reason


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same"])
def test_batch_norm_before_a_padded_convolution(mode, padding):
    conv = nn.Conv2d(4, 8, 3, padding=padding, padding_mode=mode, groups=2)
    net = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(), conv))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 9, 7).to(memory_format=layout)
        folding = fold(net, x)
        assert folding.folded == ("1",)
        assert folding.records[0].side == "right"
        assert folding.model[3].weight.shape == conv.weight.shape


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_batch_norm_before_padded_convolutions_of_all_dimensions(spatial):
    conv = getattr(nn, f"Conv{spatial}d")(4, 4, 3, padding=1, stride=2)
    norm = getattr(nn, f"BatchNorm{spatial}d")(4)
    assert fold(
        lived(nn.Sequential(nn.ReLU(), norm, conv)), torch.randn(2, 4, *[5] * spatial)
    ).folded == ("1",)


def test_border_that_cannot_be_exact_is_refused_with_its_error():
    net = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    net[1].weight.data[2] = 0
    net[1].bias.data[2] = 1
    folding = fold(net, torch.randn(2, 4, 6, 6))
    assert folding.kept == ("1",)
    assert "the border would be wrong by up to" in folding.records[0].reason
    net[1].bias.data[2] = 0  # a channel that is zero everywhere pads with zeros
    assert fold(net, torch.randn(2, 4, 6, 6)).folded == ("1",)


def test_batch_norm_before_a_transposed_convolution():
    wide = nn.ConvTranspose2d(4, 4, 3, stride=2)
    folding = fold(
        lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), wide)), torch.randn(2, 4, 6, 6)
    )
    assert folding.kept == ("1",)
    assert "the same shift everywhere" in folding.records[0].reason
    narrow = nn.ConvTranspose2d(4, 8, 1, groups=2)
    assert fold(
        lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), narrow)), torch.randn(2, 4, 6, 6)
    ).folded


@pytest.mark.parametrize("how", ["linear", "several", "several padded", "one uses more"])
def test_batch_norm_before_others(how):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4) if how == "linear" else nn.BatchNorm2d(4)
            self.a = nn.Linear(4, 5) if how == "linear" else nn.Conv2d(4, 5, 3, padding=1)
            self.b = nn.Conv2d(4, 5, 3, padding=1 if how == "several" else 2)

        def forward(self, x):
            y = self.norm(torch.relu(x))
            if how == "linear":
                return self.a(y)
            z = self.a(y), self.b(y)
            return (*z, y) if how == "one uses more" else z

    x = torch.randn(7, 4) if how == "linear" else torch.randn(2, 4, 6, 6)
    folding = bnkit.fold(lived(Net()), x)
    assert folding.proof.relative_error <= FLOAT32
    assert folding.folded == (("norm",) if how in ("linear", "several") else ())


def test_sum_with_itself_and_with_a_shortcut():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.a(y + y) + self.b(x + torch.relu(x))

    folding = fold(lived(Net()), torch.randn(2, 4, 5, 5))
    assert folding.kept == ("a", "b")


def test_batch_norms_in_a_row():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1),
                        nn.BatchNorm2d(5), nn.Identity(), nn.BatchNorm2d(5, affine=False))  # fmt: skip
    folding = fold(lived(net), torch.randn(2, 4, 5, 5))
    assert folding.folded == ("1", "4", "6")
    assert folding.records[1].into == ("0",)
    assert not batch_norms(folding.model)


@pytest.mark.parametrize("numbers", ["negative variance", "nan", "infinite"])
def test_impossible_numbers_are_refused(numbers):
    net = lived(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    )
    value = {"negative variance": -1.0, "nan": float("nan"), "infinite": float("inf")}[numbers]
    (net[3].running_var if numbers != "infinite" else net[3].running_mean)[1] = value
    folding = bnkit.fold(net, torch.randn(2, 3, 4, 4), check=False)
    assert "expected" in folding.refused["3"]
    assert not folding.proof.holds  # the original gives NaN: nothing is compared
    with pytest.raises(bnkit.BatchNormError, match="nothing could be compared"):
        bnkit.fold(net, torch.randn(2, 3, 4, 4))


def test_overflow_in_half_precision_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    net[1].running_var.fill_(1e-6)
    net[1].weight.data.fill_(6e4)
    with pytest.raises(bnkit.BatchNormError, match="'0' \\(Conv2d\\).*within torch.float16"):
        bnkit.fold(net.half(), torch.randn(1, 3, 4, 4).half())
