"""Nothing half-written, nothing lost, nothing reused that does not belong."""

import json
import math
from pathlib import Path

import pytest

from bnkit.core import BatchNormError, OutputError
from bnkit.lab.store import Parts, prepare_folder, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = prepare_folder(tmp_path / "a" / "b")
    assert names(folder) == []
    assert prepare_folder(folder) == folder


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_place_of_the_folder(tmp_path, inside):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match=r"taken.*expected a folder .*, got.*--out") as caught:
        prepare_folder(tmp_path / "taken" / inside)
    assert isinstance(caught.value, BatchNormError | OSError)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_that_refuses_files(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="got: Permission denied"):
        prepare_folder(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path, value):
    path = write_json({"a": 1}, tmp_path / "r.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"a": [value]}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["r.json"]


def test_an_interruption_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_json({"a": 1}, tmp_path / "r.json")

    def interrupt(_self, _target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["r.json"]


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        OutputError, match=r"r\.json.*No space left on device.*Make room on the disk"
    ):
        write_json({}, tmp_path / "r.json")


def test_text_is_written_as_it_is(tmp_path):
    path = write_json({"zh": "批"}, tmp_path / "r.json")
    assert "批" in path.read_text(encoding="utf-8")


class Work:
    """A computation that counts how often it runs."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def test_a_part_is_computed_once_and_read_back_exactly(tmp_path):
    work = Work({"x": [0.1 + 0.2, 1e-300, None]})
    first = Parts(tmp_path / "parts")
    assert first.get("p", {"seed": 1}, work) == work.value
    second = Parts(tmp_path / "parts")
    assert second.get("p", {"seed": 1}, work) == work.value
    assert work.times == 1
    assert (first.computed, first.reused, second.computed, second.reused) == (1, 0, 0, 1)
    assert second.seconds == first.seconds


def test_a_part_of_another_configuration_is_not_taken(tmp_path):
    Parts(tmp_path).get("p", {"seed": 1}, Work(1))
    assert Parts(tmp_path).get("p", {"seed": 2}, Work(2)) == 2
    assert Parts(tmp_path).get("p", {"seed": 1}, Work(3)) == 1


def test_a_part_of_another_version_is_not_taken(tmp_path, monkeypatch):
    Parts(tmp_path).get("p", {"seed": 1}, Work(1))
    monkeypatch.setattr("bnkit.lab.store.__version__", "99.0")
    assert Parts(tmp_path).get("p", {"seed": 1}, Work(2)) == 2


def test_a_file_with_the_right_name_and_another_key_is_not_taken(tmp_path):
    Parts(tmp_path).get("p", {"seed": 1}, Work(1))
    path = next(tmp_path.iterdir())
    other = json.loads(path.read_text())["key"] | {"seed": 2}
    path.write_text(json.dumps({"key": other, "seconds": 0, "data": 2}))
    assert Parts(tmp_path).get("p", {"seed": 1}, Work(3)) == 3


@pytest.mark.parametrize("content", ["", '{"key"', "[]", '{"key": {"seed": 1}}', "\x00"])
def test_a_damaged_part_is_computed_again_and_repaired(tmp_path, content):
    Parts(tmp_path).get("p", {"seed": 1}, Work(1))
    path = next(tmp_path.iterdir())
    path.write_text(content)
    assert Parts(tmp_path).get("p", {"seed": 1}, Work(4)) == 4
    assert json.loads(path.read_text())["data"] == 4


def test_fresh_replaces_what_is_kept(tmp_path):
    Parts(tmp_path).get("p", {"seed": 1}, Work(1))
    assert Parts(tmp_path, fresh=True).get("p", {"seed": 1}, Work(2)) == 2
    assert Parts(tmp_path).get("p", {"seed": 1}, Work(3)) == 2


def test_an_interrupted_part_is_not_kept(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path).get("p", {}, interrupt)
    assert names(tmp_path) == []


def test_without_a_folder_nothing_is_kept():
    parts, work = Parts(), Work(1)
    assert [parts.get("p", {}, work) for _ in range(2)] == [1, 1]
    assert work.times == 2
