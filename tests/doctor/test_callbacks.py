"""The callbacks in real trainings: they log what the doctor finds, and change nothing."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# both libraries warn while they are imported and where a loader has no workers
pytestmark = pytest.mark.filterwarnings("ignore")


def samples(count=128):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, generator=generator)
    return x, (x.sum(1) > 0).long()


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


class Board:
    """What a tracker is given."""

    def __init__(self):
        self.rows = []

    def log(self, values, step):
        self.rows.append((step, values))


def fitted(folder, callbacks, model, *, loggers=()):
    """A training by Lightning; None where it is not installed."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = TensorDataset(*samples())
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=list(loggers),
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    torch.manual_seed(1)
    trainer.fit(Net(), DataLoader(data, 32, shuffle=True), DataLoader(data, 32))
    return model.state_dict()


def test_lightning_logs_to_every_logger_and_trains_on_as_without(tmp_path):
    loggers_of = pytest.importorskip("lightning.pytorch.loggers")
    from bnkit.integrations.lightning import doctor_callback

    alone = fitted(tmp_path, [], network(momentum=0.0))
    callback = doctor_callback(samples(), every_n_epochs=2, batch_size=32)
    loggers = [loggers_of.CSVLogger(tmp_path, name) for name in ("one", "two")]
    beside = fitted(tmp_path, [callback], network(momentum=0.0), loggers=loggers)
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert [f.code for f in callback.diagnosis.errors] == ["BN206"]
    assert callback.diagnosis.probe.layers["net.1"].verdict == "error"
    for logger in loggers:
        with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["bn/errors"]]
        assert [row["step"] for row in rows] == ["4", "12"], "epochs 0 and 2, four steps each"
        assert {float(row["bn/errors"]) for row in rows} == {1.0}
        assert float(rows[0]["bn/net.1/d90"]) > 0
        assert 0 <= float(rows[0]["bn/accuracy/eval"]) <= 1


def test_lightning_without_a_logger(tmp_path):
    pytest.importorskip("lightning.pytorch")
    from bnkit.integrations.lightning import doctor_callback

    callback = doctor_callback(samples())
    fitted(tmp_path, [callback], network())
    assert callback.diagnosis.probe.batches == 2


def trained(folder, callbacks):
    """A ResNet trained by the Trainer of transformers."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs it")
    shape = {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(**shape, layer_type="basic", num_labels=2)
    )
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=6,
        eval_strategy="steps",
        eval_steps=3,
        per_device_train_batch_size=16,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=IMAGES, eval_dataset=IMAGES[:16], callbacks=callbacks
    )
    trainer.train()
    return model.state_dict()


IMAGES = [
    {"pixel_values": torch.full((1, 16, 16), i % 2 + i / 64), "labels": i % 2} for i in range(64)
]


def test_transformers_logs_at_each_evaluation_and_trains_on_as_without(tmp_path):
    alone = trained(tmp_path, [])
    from bnkit.integrations.transformers import doctor_callback

    board = Board()
    callback = doctor_callback(DataLoader(IMAGES, 16), board)
    beside = trained(tmp_path, [callback])
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert [step for step, _ in board.rows] == [3, 6]
    assert {"bn/errors", "bn/accuracy/eval"} <= set(board.rows[0][1])
    assert len(callback.diagnosis.records) == 6
    assert [f.code for f in callback.diagnosis.errors] == ["BN205"], "six steps are too few"
    assert board.rows[-1][1]["bn/errors"] == 1
