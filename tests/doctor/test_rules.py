"""Every rule: a model that fires it, one that does not, and a page with all of its headings."""

import copy
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bnkit
from bnkit.doctor import Selection, Severity, all_rules, find_rule
from bnkit.doctor.catalogue import chinese_page
from bnkit.doctor.evidence import Evidence
from bnkit.doctor.rule import HEADINGS

STARRED = [
    "102",
    "106",
    "107",
    "201",
    "202",
    "204",
    "205",
    "206",
    "207",
    "215",
    "301",
    "302",
    "303",
    "304",
    "306",
    "308",
    "401",
    "501",
    "502",
    "503",
    "505",
    "602",
    "606",
    "701",
    "704",
]
EVERYTHING = Selection(level=Severity.INFO)


def codes(*args, **options):
    found = bnkit.diagnose(*args, selection=EVERYTHING, **options)
    return {f.code for f in found.findings} | {c for f in found.findings for c in f.consequences}


@pytest.fixture
def net(patients):
    return patients.chain()


@pytest.fixture
def x(patients):
    return patients.rows()


def test_a_well_trained_network_fires_nothing(net, x):
    for purpose in ("infer", "export"):
        assert codes(net, x, purpose) == set()
    assert codes(net.train(), x, "train") == set()


def test_all_25_starred_rules_are_there():
    assert [c[2:] for c, r in all_rules().items() if r.starred] == STARRED


@pytest.mark.parametrize("code", all_rules())
def test_form_of_a_rule(code):
    one = find_rule(code)
    headings = [line[3:] for line in one.page.splitlines() if line.startswith("## ")]
    assert headings == list(HEADINGS)
    assert ">>> " in one.page.partition("## Example")[2]
    assert set(one.needs) <= {f.name for f in fields(Evidence)}
    assert code not in one.explains
    assert one.check.__doc__
    assert find_rule(one.name.upper().lower()) is one


@pytest.mark.parametrize("code", all_rules())
def test_every_rule_has_a_chinese_page(code):
    page = chinese_page(code)
    assert page is not None
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["检查什么", "为什么不好", "已知问题", "怎么办"]
    title, *parts = re.split("\n\n## .*\n\n", page)
    assert all(
        re.search("[\u4e00-\u9fff]", part) and part.endswith("。") for part in (title, *parts)
    )
    assert "\n" not in title
    named = re.findall(r"\bBN\d\d\d\b", page)
    assert all(c in all_rules() for c in named)


def test_rules_that_are_left_out_are_named_with_the_reason():
    last = {1: 17, 2: 17, 3: 10, 4: 9, 5: 11, 6: 13, 7: 10}
    codes = {f"BN{family}{n:02}" for family, count in last.items() for n in range(1, count + 1)}
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    left_out = re.findall(r"^- (BN\d\d\d) [a-z-]+: .{40,}", page, re.MULTILINE)
    assert set(left_out) | set(all_rules()) == codes
    assert not set(left_out) & set(all_rules())


def set_(name, value, *, layer=0):
    def change(model):
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
        tensor = getattr(norms[layer], name)
        tensor.copy_(value(tensor) if callable(value) else torch.as_tensor(value))

    return change


STATIC = {
    "BN202": set_("running_mean", lambda t: t * float("nan")),
    "BN203": set_("running_var", lambda t: -t),
    "BN208": set_("running_var", lambda t: t * 0 + 1),
    "BN401": set_("weight", lambda t: t * (torch.arange(8) > 5)),
    "BN402": set_("weight", 0.0),
    "BN403": set_("weight", 1.0),
    "BN407": set_("bias", lambda t: t / 0),
    "BN408": set_("weight", 1e6),
}


@pytest.mark.parametrize("code", STATIC)
def test_of_the_state_alone(patients, net, code):
    def change(model):
        STATIC[code](model)
        if code == "BN208":
            model[1].running_mean.zero_()
        if code == "BN403":
            model[1].bias.zero_()

    assert code not in codes(net)
    assert code in codes(patients.changed(net, change))
    assert code in codes(patients.changed(net, change).state_dict()) or code in {"BN402", "BN408"}


def test_stats_at_init(patients, net):
    lost = patients.changed(net, lambda m: [n.reset_running_stats() for n in patients.norms(m)])
    assert "BN201" in codes(lost)
    assert "BN201" in codes(lost.state_dict())
    assert "BN201" not in codes(nn.BatchNorm1d(3), purpose="train")
    only_copied = net.state_dict() | {"1.num_batches_tracked": torch.tensor(0)}
    assert "BN201" not in codes(only_copied), "a count of 0 proves nothing"


def test_ema_not_converged(patients, net):
    few = patients.changed(
        net, lambda m: [n.num_batches_tracked.fill_(3) for n in patients.norms(m)]
    )
    assert "BN205" in codes(few)
    none = patients.changed(
        few, lambda m: [n.num_batches_tracked.fill_(0) for n in patients.norms(m)]
    )
    assert "BN205" not in codes(none)


@pytest.mark.parametrize(
    ("momentum", "level"), [(0.5, 2), (0.99, 2), (-0.1, 3), (1.5, 3), (None, 1)]
)
def test_momentum(net, momentum, level):
    net[1].momentum = momentum
    found = bnkit.diagnose(
        net, selection=Selection(level=Severity.INFO, select=("BN206",))
    ).findings
    assert [int(f.severity) for f in found] == [level]
    net[1].momentum = 0.0003
    assert "BN206" not in codes(net)


def test_duplicated_low_precision_and_cumulative(patients, net):
    def twin(model):
        model[4].load_state_dict(model[1].state_dict())

    assert "BN212" in codes(patients.changed(net, twin))
    assert "BN213" in codes(copy.deepcopy(net).half())
    tiny = patients.changed(net, set_("running_var", lambda t: t * 1e-9)).half()
    assert "BN213" in {f.code for f in bnkit.diagnose(tiny).errors}
    cumulative = patients.changed(net, lambda m: m[1].num_batches_tracked.zero_()).train()
    cumulative[1].momentum = None
    assert "BN217" in codes(cumulative, purpose="finetune")
    cumulative[1].num_batches_tracked += 1
    assert "BN217" not in codes(cumulative, purpose="finetune")


def test_pairs(patients, net):
    other = patients.changed(net, lambda m: m[0].weight.mul_(0.9))
    assert "BN215" in codes(other, pair=net, relation="averaged")
    moved = patients.changed(other, set_("running_mean", lambda t: t + 0.01))
    assert "BN215" not in codes(moved, pair=net, relation="averaged")
    assert "BN215" not in codes(net, pair=copy.deepcopy(net), relation="averaged")
    drifted = patients.changed(net, set_("running_mean", lambda t: t + 9))
    assert "BN214" in codes(net, pair=drifted, relation="rank")
    assert "BN214" not in codes(net, pair=copy.deepcopy(net), relation="rank")
    assert "BN709" not in codes(net, pair=copy.deepcopy(net), relation="converted")
    drifted[1].eps = 1e-3
    assert "BN709" in codes(net, pair=drifted, relation="converted")


def test_averaged_model_of_torch_is_compared_by_short_names(net):
    from torch.optim.swa_utils import AveragedModel

    average = AveragedModel(net)
    with torch.no_grad():
        net[0].weight.mul_(0.9)
    assert "BN215" in codes(average.eval(), pair=net, relation="averaged")


def test_modes(net):
    assert "BN301" in codes(net.train(), purpose="infer")
    assert "BN301" not in codes(net, purpose="train")
    net.requires_grad_(False)
    assert "BN302" in codes(net, purpose="finetune")
    assert "BN302" not in codes(net, purpose="train")
    net.requires_grad_(True)
    net[1].eval()
    assert {"BN306"} <= codes(net, purpose="finetune")
    frozen = nn.Sequential(bnkit.nn.BatchNorm1d(3), nn.Linear(3, 2))
    bnkit.nn.freeze_(frozen)
    assert not {"BN302", "BN306", "BN305"} & codes(frozen.train(), purpose="finetune")


class Custom(nn.Module):
    """A batch norm of one's own; `training` and `update` are what goes wrong."""

    def __init__(self, training, update=False):
        super().__init__()
        self.register_buffer("mean", torch.full((4,), 0.1))
        self.register_buffer("var", torch.ones(4))
        self.fixed, self.update = training, update

    def forward(self, x):
        mean, var = (self.mean, self.var) if self.update else (self.mean.clone(), self.var.clone())
        return nn.functional.batch_norm(x, mean, var, training=self.fixed)


@pytest.mark.parametrize("training", [True, False])
def test_behaviour(x, training):
    model = nn.Sequential(Custom(training), nn.BatchNorm1d(4)).eval()
    model[1].running_mean += 1e-3
    found = codes(model, x)
    assert ("BN303" in found) is training
    assert ("BN309" in found) is training


def test_untracked(patients, x):
    model = patients.chain(track_running_stats=False, momentum=0.1)
    assert {"BN303", "BN307"} <= codes(model, x)
    assert "BN307" in {f.code for f in bnkit.diagnose(model, purpose="export").errors}


def test_eval_that_changes_state(x):
    class Stubborn(nn.BatchNorm1d):
        def train(self, _mode=True):
            return super().train(True)

        @property
        def training(self):
            return True

        @training.setter
        def training(self, value):
            pass

    model = nn.Sequential(Stubborn(4)).eval()
    assert "BN304" in codes(model, x)
    assert "BN304" not in codes(nn.Sequential(nn.BatchNorm1d(4)).eval(), x)


def test_structure(x):
    def chain(*layers):
        return nn.Sequential(nn.Linear(4, 8, bias=False), *layers, nn.Linear(8, 2))

    assert "BN102" in codes(chain(nn.Dropout(0.5), nn.BatchNorm1d(8)), x, "train")
    assert "BN102" not in codes(chain(nn.Dropout(0.0), nn.BatchNorm1d(8)), x, "train")
    assert "BN102" not in codes(chain(nn.BatchNorm1d(8), nn.Dropout(0.5)), x, "train")
    assert "BN105" in codes(chain(nn.BatchNorm1d(8), nn.BatchNorm1d(8)), x, "train")
    assert "BN113" in codes(chain(nn.ReLU(), nn.BatchNorm1d(8)), x, "train")
    shared = nn.BatchNorm1d(8)
    assert "BN106" in codes(chain(shared, nn.ReLU(), nn.Linear(8, 8), shared), x, "train")
    assert "BN106" not in codes(chain(shared), x, "train")


def test_wrong_axis():
    sequence = torch.randn(64, 16, 8)
    wrong = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
    assert "BN107" in codes(wrong, sequence, "train")
    right = nn.Sequential(nn.Conv1d(16, 8, 1), nn.BatchNorm1d(8))
    assert "BN107" not in codes(right, sequence, "train")
    own = nn.Sequential(nn.Linear(8, 16), bnkit.nn.BatchNorm(16, axis=-1))
    assert "BN107" not in codes(own, sequence, "train")


def test_size_of_batches(net, x):
    net.train()
    assert "BN501" in codes(net, x, "train", batch_size=4)
    assert "BN501" not in codes(net, x, "train", batch_size=64)
    frozen = copy.deepcopy(net).eval()
    assert "BN501" not in codes(frozen, x, "infer", batch_size=4)
    for count, expected in ((129, "error"), (130, "warning"), (128, None), (180, None)):
        loader = DataLoader(TensorDataset(x[:count]), batch_size=64)
        found = [f for f in bnkit.diagnose(net, loader, "train").findings if f.code == "BN502"]
        assert [f.severity.label for f in found] == ([expected] if expected else [])


def test_data_of_several_kinds(net, x):
    assert "BN506" in codes(net, x, serving=4 * x)
    assert "BN506" not in codes(net, x, serving=x.flip(0))
    assert "BN507" in codes(net, x, domains={"a": x, "b": 9 * x + 3})
    assert "BN507" not in codes(net, x, domains={"a": x[:640], "b": x[640:]})
    constant = torch.cat([x[:, :3], x[:, 3:] * 0 + 2], 1)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert "BN508" in codes(model, constant, "train")
    assert "BN509" in codes(model, x + 1e5, "train")
    assert not {"BN508", "BN509"} & codes(model, x, "train")


def test_replicas(x):
    inner = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    parallel = nn.DataParallel(inner)
    assert "BN606" in codes(parallel, x, "train", batch_size=8)
    assert "BN606" not in codes(parallel, x, "train", batch_size=64)
    assert "BN606" not in codes(inner, x, "train", batch_size=8)


@pytest.mark.parametrize("channels", [slice(None), slice(0, 1)])
def test_two_that_explain_each_other_do_not_make_each_other_vanish(patients, channels):
    model = patients.chain()
    model[1].running_var[channels] *= -1
    (finding,) = bnkit.diagnose(model.eval(), patients.rows()).errors
    assert finding.code == "BN203"
    assert "BN204" in finding.consequences
