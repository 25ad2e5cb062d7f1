"""The commands in this process: what they print, what they write, how they end."""

import errno
import json
import signal

import pytest
from cyclopts import CycloptsError

from bnkit import __version__
from bnkit.cli import main
from bnkit.cli.console import language
from bnkit.core import InputError
from bnkit.lab import MofanConfig, ablation
from bnkit.lab import demo as lab_demo

SMALL = MofanConfig(steps=11, record_every=5)
TAKES_A_MINUTE = lab_demo.run_mofan_alone


@pytest.fixture
def small(monkeypatch):
    """`bnkit lab mofan` with few steps and one seed, and the arguments it was run with."""
    seen = {}

    def run(config, *, profile, parts, progress):
        seen.update(seed=config.seed, profile=profile, fresh=parts.fresh)
        return TAKES_A_MINUTE(SMALL, profile="quick", parts=parts, progress=progress)

    monkeypatch.setitem(ablation.SEEDS, "quick", 1)
    monkeypatch.setattr(lab_demo, "run_mofan_alone", run)
    return seen


@pytest.fixture
def raising(monkeypatch):
    """`bnkit lab mofan` that fails with the error that is set."""

    def choose(error):
        def run(*_args, **_kwargs):
            raise error

        monkeypatch.setattr(lab_demo, "run_mofan_alone", run)

    return choose


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_help_names_every_command_and_the_debug_switch(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("demo", "lab", "spec", "--debug", "--version"))
    assert main(["demo", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("--out", "--seed", "--fresh", "--quiet", "--lang", "bnkit-demo")
    )


@pytest.mark.parametrize(("lang", "word"), [("en", "tutorial"), ("zh", "教程")])
def test_list_of_experiments(capsys, lang, word):
    assert main(["lab", "list", "--lang", lang]) == 0
    out = capsys.readouterr().out
    assert "bnkit lab mofan" in out
    assert word in out


def test_mofan_writes_a_page_figures_and_numbers_and_says_where(small, tmp_path, capsys):
    folder = tmp_path / "new" / "results"
    arguments = ["lab", "mofan", "--out", str(folder), "--seed", "4", "--full", "--lang", "en"]
    assert main(arguments) == 0
    assert small == {"seed": 4, "profile": "full", "fresh": False}
    said = capsys.readouterr()
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert document["findings"][0]["text"]["en"] in said.out
    assert str(folder / "report.html") in said.out
    assert str(folder / "results.json") in said.out
    figures = list(folder.glob("*.png"))
    assert figures
    assert all(str(path) in said.out for path in figures)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert "Mofan's four networks" in said.err
    assert "\x1b" not in said.out + said.err, "no colours where there is no terminal"
    kept = [p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    assert kept == []


def test_a_second_run_takes_over_what_is_finished(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bnkit.viz.save_figures", lambda *_: [])  # seconds, and not the subject
    arguments = ["lab", "mofan", "--out", str(tmp_path), "--lang", "zh"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert main(arguments) == 0
    second = capsys.readouterr().out
    assert "--fresh" not in first
    assert "12 个部分（--fresh" in second
    assert first.splitlines()[0] == second.splitlines()[0]
    assert "页面" in second
    assert main([*arguments, "--fresh", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert small["fresh"] is True


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--sed", "1"],
        ["demo", "--seed", "one"],
        ["demo", "--seed", "-1"],
        ["demo", "--lang", "fr"],
        ["demo", "--out"],
        ["demo", "--out", ""],
        ["lab", "mofan", "--out", " "],
        ["demo", "extra"],
        ["lab", "mofam"],
        ["dmo"],
    ],
    ids=" ".join,
)
def test_wrong_usage(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert len(said.err.strip().splitlines()) <= 3
    assert said.out == ""


@pytest.mark.parametrize("command", [["demo"], ["lab", "mofan"]], ids=" ".join)
def test_a_file_in_place_of_the_folder_is_found_before_the_work(
    command, raising, monkeypatch, tmp_path, capsys
):
    unreachable = AssertionError("the work was started")
    raising(unreachable)
    monkeypatch.setattr(lab_demo, "run_demo", lambda *_a, **_k: pytest.fail("started"))
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert main([*command, "--out", str(taken)]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"error: output folder '{taken}': expected a folder")
    assert "--out" in said.err
    assert taken.read_text() == "mine"


def test_our_errors_are_one_message_and_a_traceback_only_with_debug(raising, tmp_path, capsys):
    raising(InputError("layer x: expected 3, got 4. Do this."))
    words = ["lab", "mofan", "--out", str(tmp_path)]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "error: layer x: expected 3, got 4. Do this.\n" in said
    assert "Traceback" not in said
    assert main([*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["--debug", *words]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_unexpected_errors_are_called_bugs(raising, tmp_path, capsys):
    raising(ZeroDivisionError("division by zero"))
    assert main(["lab", "mofan", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: division by zero" in said
    assert "--debug" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("extra", "advice"), [([], "command to"), (["--fresh"], "without --fresh")]
)
def test_interruption_says_what_is_kept_and_how_to_go_on(extra, advice, raising, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a-0123.json").write_text("{}")
    raising(KeyboardInterrupt())
    assert main(["lab", "mofan", "--out", str(tmp_path), *extra]) == 130
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"bnkit: Stopped. Finished parts (1) are kept in {tmp_path / 'parts'}.")
    assert advice in last
    assert "Traceback" not in said


@pytest.mark.parametrize("swallowed", [False, True], ids=["other error", "no error"])
@pytest.mark.usefixtures("small")
def test_an_interrupt_that_a_library_swallows_is_still_one(
    swallowed, tmp_path, monkeypatch, capsys
):
    """Inside matplotlib, Ctrl-C was seen to come out as a ValueError."""

    def save(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not swallowed:
                msg = "Invalid bounding box"
                raise ValueError(msg) from None
        return []

    monkeypatch.setattr("bnkit.viz.save_figures", save)
    assert main(["lab", "mofan", "--out", str(tmp_path)]) == 130
    said = capsys.readouterr()
    assert said.err.strip().splitlines()[-1].startswith("bnkit: Stopped. Finished parts (12)")
    assert "bug" not in said.err
    assert said.out == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_named_with_the_files_that_are_complete(tmp_path, monkeypatch, capsys):
    def full(_figure, path, **_):
        if "tanh" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert main(["lab", "mofan", "--out", str(tmp_path)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device. Make room on the disk" in last
    assert "Figures complete: mofan-relu.png." in last
    assert "Files complete before: results.json, report.html." in last
    assert "hoose" not in last


def test_an_empty_folder_name_is_not_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", ""]) == 2
    assert "expected the name of a folder, got an empty one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["keras3", "torch"], ["keras2.3-conv", "tf-keras2-unfused"], ["bnkit"], []],
    ids=" ".join,
)
def test_spec_fits_80_columns_and_cuts_no_name(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["spec", *words]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith((" ", "│", "┃")))
    assert len(words) != 1 or "frozen_normalizes_with" in out


def test_a_correction_made_twice_is_not_read_as_times_two(capsys):
    assert main(["spec"]) == 0
    assert "/(n-1) twice" in capsys.readouterr().out
    assert main(["spec", "keras2.3-conv"]) == 0
    assert "again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_TW", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US", "LC_MESSAGES": "zh_CN"}, "zh"),
    ],
)
def test_language_of_the_locale(environment, expected, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language(None) == expected
    assert language("zh") == "zh"


def test_usage_errors_do_not_leave_this_process(capsys):
    try:
        assert main(["nonsense"]) == 2
    except (SystemExit, CycloptsError):
        pytest.fail("main returns the status, so that its caller decides")
    assert "nonsense" in capsys.readouterr().err
