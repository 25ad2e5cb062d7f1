"""The plan: what goes where, what is refused, and that nothing is written before it is applied."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import KERAS3, ConversionError, InputError, SpecError
from bnkit.formats import read

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def norm(scope, c, *, without=(), seed=0):
    draw = np.random.default_rng(seed + c)
    values = {leaf: draw.uniform(0.5, 2, c).astype(np.float32) for leaf in NORM}
    return {f"{scope}/{leaf}": v for leaf, v in values.items() if leaf not in without}


def dense(scope, i, o, *, bias=True, seed=0):
    draw = np.random.default_rng(seed + i)
    found = {f"{scope}/kernel": draw.normal(size=(i, o)).astype(np.float32)}
    return found | ({f"{scope}/bias": np.ones(o, np.float32)} if bias else {})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.bn1 = nn.BatchNorm1d(4)
        self.fc2 = nn.Linear(4, 4)
        self.bn2 = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 2)


def checkpoint():
    found = dense("net/dense", 3, 4) | norm("net/batch_normalization", 4, seed=1)
    found |= dense("net/dense_1", 4, 4, seed=2) | norm("net/batch_normalization_1", 4, seed=3)
    return found | dense("net/dense_2", 4, 2, seed=4)


def test_numbers_in_names_give_the_order():
    plan = bnkit.convert(checkpoint(), Net())
    assert plan.restored["bn1.running_mean"] == "net/batch_normalization/moving_mean"
    assert plan.restored["bn2.running_mean"] == "net/batch_normalization_1/moving_mean"
    assert {t.pair.how for t in plan.transfers} == {"only one of its shape", "order and shape"}


def test_numbers_that_contradict_the_shapes_are_not_believed():
    """dense_2 is the first layer of this network; then `batch_normalization` may be any."""
    file = {k.replace("dense_1", "dense_x"): v for k, v in checkpoint().items()}

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.BatchNorm1d(5)
            self.b = nn.BatchNorm1d(4)
            self.c = nn.BatchNorm1d(4)

    file = norm("n/bn_2", 5) | norm("n/bn", 4) | norm("n/bn_1", 4, seed=5)
    with pytest.raises(ConversionError, match="numbers in the names are not in the order"):
        bnkit.convert(file, Turned())
    rules = {"n/bn": "b", "n/bn_1": "c"}
    assert {t.pair.how for t in bnkit.convert(file, Turned(), rules=rules).transfers} == {
        "rule",
        "only one of its shape",
    }


def test_words_in_names_decide():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.ModuleDict({"norm": nn.BatchNorm1d(4)})
            self.head = nn.ModuleDict({"norm": nn.BatchNorm1d(4)})

    file = norm("m/head/BatchNorm", 4) | norm("m/stem/BatchNorm", 4, seed=9)
    plan = bnkit.convert(file, Words())
    assert plan.restored["stem.norm.weight"] == "m/stem/BatchNorm/gamma"
    assert {t.pair.how for t in plan.transfers} == {"name and shape"}


def test_names_without_order_are_refused_with_the_candidates():
    file = norm("m/left/BatchNorm", 4) | norm("m/right/BatchNorm", 4)
    with pytest.raises(ConversionError) as caught:
        bnkit.convert(file, nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)))
    for word in ("'m/left/BatchNorm' (4,)", "'m/right/BatchNorm' (4,)", "'0' (4,)", "'1' (4,)"):
        assert word in str(caught.value)


def test_rules_are_regular_expressions_with_groups():
    file = norm("m/left_1/BatchNorm", 4) | norm("m/left_0/BatchNorm", 4, seed=2)
    target = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    plan = bnkit.convert(file, target, rules={r"m/left_(\d)/BatchNorm": r"\1"})
    assert plan.restored["0.weight"] == "m/left_0/BatchNorm/gamma"
    plan = bnkit.convert(file, target, rules={r"m/left_(\d)/BatchNorm/gamma": r"\1.weight"})
    assert plan.restored["1.bias"] == "m/left_1/BatchNorm/beta"


@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        ({"no/such": "bn1"}, InputError, "got none (each is used once). Its layers: 'net/dense'"),
        ({"net/dense": "bn7"}, InputError, "still free, got 'bn7'. Free: 'fc1', 'bn1'"),
        ({"net/dense": "bn1"}, ConversionError, "expected batch_norm with weight (4,)"),
        ({"net/dense": "out"}, ConversionError, "do not fit 'out'"),
        ({"net/(": "out"}, InputError, "expected a regular expression"),
        ({"net/dense": r"\3"}, InputError, "cannot be filled in"),
    ],
)
def test_bad_rules(rules, error, words):
    with pytest.raises(error, match=re.escape(words)):
        bnkit.convert(checkpoint(), Net(), rules=rules)


def test_moving_statistics_are_never_dropped_in_silence():
    """A checkpoint of the trainable variables alone, as `Saver(tf.trainable_variables())` makes."""
    file = {k: v for k, v in checkpoint().items() if "moving" not in k}
    for partial in (False, True):
        with pytest.raises(
            ConversionError, match="restored and its statistics would not"
        ) as caught:
            bnkit.convert(file, Net(), partial=partial)
    assert "leave=['bn1.running_*']" in str(caught.value)
    with pytest.raises(ConversionError, match="'net/batch_normalization_1' -> 'bn2'"):
        bnkit.convert(file, Net(), leave=["bn1.running_*"])
    plan = bnkit.convert(file, Net(), leave=["bn?.running_*"])
    assert plan.left == (
        "bn1.running_mean",
        "bn1.running_var",
        "bn2.running_mean",
        "bn2.running_var",
    )
    assert "bn1.weight" in plan.tensors
    assert "bn1.running_mean" not in plan.tensors


@pytest.mark.parametrize(
    ("lost", "role"), [("moving_mean", "running_mean"), ("moving_variance", "running_var")]
)
def test_one_lost_statistic_is_enough(lost, role):
    file = {k: v for k, v in checkpoint().items() if not k.endswith(f"_1/{lost}")}
    with pytest.raises(ConversionError, match=f"'bn2': .* the source has no {role}"):
        bnkit.convert(file, Net(), partial=True)


def test_a_part_of_a_network_with_three_lists():
    file = {k: v for k, v in checkpoint().items() if "dense_2" not in k} | dense("net/old", 9, 9)
    with pytest.raises(ConversionError, match=r"nothing for out.weight \(2, 4\), out.bias"):
        bnkit.convert(file, Net())
    plan = bnkit.convert(file, Net(), partial=True)
    assert plan.missing == ("out.weight", "out.bias")
    assert plan.unused == ("net/old/kernel", "net/old/bias")
    assert set(plan.restored) | set(plan.missing) == {
        n for n in Net().state_dict() if "num_batches" not in n
    }
    text = str(plan)
    assert "missing (the target keeps its own): out.weight, out.bias" in text
    assert "unused (of the source): net/old/kernel, net/old/bias" in text
    plan = bnkit.convert(file, Net(), leave="out", rules={"net/old": None})
    assert plan.left == ("out.weight", "out.bias")
    assert plan.aside["net/old/kernel"] == "another part of the file"


def test_nothing_is_written_before_apply_and_all_or_nothing_then():
    target = Net()
    before = {n: v.clone() for n, v in target.state_dict().items()}
    plan = bnkit.convert(checkpoint(), target)
    assert all(torch.equal(v, before[n]) for n, v in target.state_dict().items())
    target.out = nn.Linear(4, 3)
    before = {n: v.clone() for n, v in target.state_dict().items()}
    with pytest.raises(InputError, match=r"'out.weight': expected a tensor of shape \(2, 4\)"):
        plan.apply()
    assert all(torch.equal(v, before[n]) for n, v in target.state_dict().items())


def test_kernels_biases_and_batch_norms_arrive():
    file, target = checkpoint(), Net()
    spec = replace(KERAS3, eps=1e-5, ema_weight=0.1)
    plan = bnkit.convert(file, target, spec=spec, count=2**25)
    assert plan.apply() is target
    assert torch.equal(target.fc2.weight, torch.from_numpy(file["net/dense_1/kernel"].T))
    assert torch.equal(
        target.bn2.running_var, torch.from_numpy(file["net/batch_normalization_1/moving_variance"])
    )
    assert plan.exact
    assert not bnkit.convert(file, target, spec=spec, count=20).exact
    found = bnkit.convert(file, target, spec=spec).to_dict()
    assert not found["exact"]
    assert found["layers"][1]["differs"][0]["field"] == "running_correction"


def test_specifications_by_layer_and_by_name():
    file = checkpoint()
    spec = {r"net/batch_normalization": "keras3,eps=0.5", r".*_1": replace(KERAS3, eps=0.25)}
    plan = bnkit.convert(file, Net(), spec=spec)
    assert [t.specs[0].eps for t in plan.batch_norms] == [0.5, 0.25]
    assert bnkit.convert(file, Net(), spec="flax").batch_norms[0].specs[0].eps == 1e-5
    with pytest.raises(SpecError, match="did you mean keras3"):
        bnkit.convert(file, Net(), spec="kers3")
    with pytest.raises(SpecError, match="expected field=value, got 'epsilon=1'"):
        bnkit.convert(file, Net(), spec="keras3,epsilon=1")


def test_defaults_that_were_assumed_are_shown(tmp_path):
    np.savez(tmp_path / "net.npz", **checkpoint())
    plan = bnkit.convert(Net(), tmp_path / "net.npz")
    assert "target: default of tf-layers-fused" in str(plan)
    assert "default of" not in str(bnkit.convert(Net(), Net()))
    specification = plan.to_dict()["layers"][1]["specification"]
    assert specification == {"source": "stored", "target": "default of tf-layers-fused"}


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match=r"unknown framework 'tensorlow'\. Known: torch, tf1"):
        bnkit.convert(checkpoint(), Net(), framework="tensorlow")
    with pytest.raises(InputError, match=r"got 'bn9\.\*', which fits none"):
        bnkit.convert(checkpoint(), Net(), leave=["bn9.*"])
    with pytest.raises(InputError, match="expected tensors under 'mlp/', got none"):
        bnkit.convert(checkpoint(), Net(), root="mlp/")
    with pytest.raises(InputError, match="got int"):
        bnkit.convert(3, Net())
    with pytest.raises(InputError, match="a lazy one"):
        bnkit.convert(checkpoint(), nn.Sequential(nn.LazyLinear(3)))


def test_targets_without_a_place_are_refused():
    file = norm("net/bn", 4)
    with pytest.raises(ConversionError, match="keeps running statistics"):
        bnkit.convert(file, nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ConversionError, match="expected a target with a weight"):
        bnkit.convert(file, nn.BatchNorm1d(4, affine=False))
    plan = bnkit.convert(norm("net/bn", 4, without=("gamma", "beta")), nn.BatchNorm1d(4))
    assert plan.tensors["weight"].tolist() == [1.0] * 4
    plan = bnkit.convert(dense("a", 3, 2, bias=False), nn.Linear(3, 2))
    assert plan.tensors["bias"].tolist() == [0.0, 0.0]
    with pytest.raises(ConversionError, match="the bias is not zero"):
        bnkit.convert(dense("a", 3, 2), nn.Linear(3, 2, bias=False))


def test_a_root_and_prefixes():
    model, target = Net(), Net()
    state = {f"module.{n}": t for n, t in model.state_dict().items()}
    state |= {f"ema.module.{n}": t + 1 for n, t in model.state_dict().items()}
    plan = bnkit.convert(state, target, root="module.")
    plan.apply()
    assert torch.equal(target.fc1.weight, model.fc1.weight)
    plan = bnkit.convert(state, target, root="ema.")
    plan.apply()
    assert torch.equal(target.fc1.weight, model.fc1.weight + 1)


def test_half_precision_targets_are_rounded_and_overflow_is_refused():
    target = Net().half()
    plan = bnkit.convert(checkpoint(), target)
    assert plan.tensors["bn1.running_var"].dtype == np.float16
    assert any("rounded to float16" in note for t in plan.transfers for note in t.notes)
    file = checkpoint()
    file["net/batch_normalization/moving_mean"] = np.full(4, 1e6, np.float32)
    with pytest.raises(ConversionError, match="numbers that float16 can hold, got 1e"):
        bnkit.convert(file, target)


@pytest.mark.parametrize(
    "make",
    [
        bnkit.nn.BatchNorm1d,
        bnkit.nn.BatchRenorm1d,
        lambda c: bnkit.nn.GhostBatchNorm1d(c, virtual_batch_size=2),
        lambda c: bnkit.nn.BatchNorm(c, axis=-1),
        nn.SyncBatchNorm,
    ],
)
def test_every_layer_of_the_family_takes_the_inference(make):
    file, target = norm("net/bn", 4), make(4)
    bnkit.convert(file, target).apply()
    x = torch.randn(6, 4)
    mean, var = (torch.from_numpy(file[f"net/bn/{n}"]) for n in NORM[2:])
    weight, bias = (torch.from_numpy(file[f"net/bn/{n}"]) for n in NORM[:2])
    want = (x - mean) / torch.sqrt(var + 1e-3) * weight + bias
    torch.testing.assert_close(target.eval()(x), want, rtol=1e-5, atol=1e-6)
    if hasattr(target, "renorm_mean"):
        torch.testing.assert_close(target.renorm_mean, target.running_mean)


def test_a_model_is_a_source_too():
    source, target = Net(), Net()
    source.bn1.eps = 1e-2
    plan = bnkit.convert(source, target)
    plan.apply()
    torch.testing.assert_close(target.bn1.running_var, source.bn1.running_var + 1e-2 - 1e-5)
    assert plan.batch_norms[0].origin == "stored"
    assert not plan.batch_norms[0].conversion.exact
    assert plan.batch_norms[1].conversion.exact
    assert "num_batches_tracked" in "".join(plan.tensors)


def test_paths_may_be_text(tmp_path):
    np.savez(tmp_path / "net.npz", **checkpoint())
    assert bnkit.convert(str(tmp_path / "net.npz"), Net()).restored
    assert bnkit.convert(read(tmp_path / "net.npz"), Net()).restored


class Flattened(nn.Module):
    def __init__(self, channels=2, inputs=8):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1, bias=False)
        self.fc = nn.Linear(inputs, 3, bias=False)


def flattened_file(channels=2, inputs=8):
    kernel = np.arange(inputs * 3, dtype=np.float32).reshape(inputs, 3)
    return {"n/conv2d/kernel": np.ones((1, 1, 1, channels), np.float32), "n/dense/kernel": kernel}


def test_a_flattened_map_is_asked_for_whichever_side_keeps_the_order(tmp_path):
    for inputs in (8, 7):  # also where a concatenation hides the channels
        with pytest.raises(ConversionError, match="are a flattened map"):
            bnkit.convert(flattened_file(2, inputs), Flattened(2, inputs), framework="tf1")
    np.savez(tmp_path / "tf.npz", **flattened_file())
    with pytest.raises(ConversionError, match=r"perhaps \(2, 2\)"):
        bnkit.convert(Flattened(), tmp_path / "tf.npz", target_framework="tf1")
    state = {n: t.numpy() for n, t in Flattened().state_dict().items()}
    np.savez(tmp_path / "torch.npz", **state)
    names = {"framework": "torch", "target_framework": "tf1"}
    with pytest.raises(ConversionError, match="are a flattened map"):
        bnkit.convert(tmp_path / "torch.npz", tmp_path / "tf.npz", **names)
    plan = bnkit.convert(
        tmp_path / "torch.npz", tmp_path / "tf.npz", flatten={"n/dense": (2, 2)}, **names
    )
    want = state["fc.weight"].reshape(3, 2, 4).transpose(2, 1, 0).reshape(8, 3)
    np.testing.assert_array_equal(plan.tensors["n/dense/kernel"], want)


def test_pooled_maps_are_not_flattened():
    plan = bnkit.convert(flattened_file(8), Flattened(8), framework="tf1")
    assert torch.equal(
        torch.from_numpy(plan.tensors["fc.weight"]),
        torch.from_numpy(flattened_file(8)["n/dense/kernel"].T),
    )
