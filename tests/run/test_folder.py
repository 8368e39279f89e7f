"""Output folders: taken, resumed, refused."""

import json
import subprocess
import sys

import pytest

from secateur.errors import ArgumentError, FormatError
from secateur.run.folder import RUN, claim, finished_in_place, read_arguments

ARGUMENTS = {"model": "a:b", "seed": 0}


def test_a_new_folder_is_made_and_the_result_says_what_made_it(tmp_path):
    with claim(tmp_path / "deep" / "out", ARGUMENTS) as folder:
        assert folder.work.is_dir()
        assert not folder.resumed
        (tmp_path / "result").mkdir()
        folder.sign(tmp_path / "result")
    assert read_arguments(tmp_path / "result") == ARGUMENTS
    assert [p.name for p in (tmp_path / "result").iterdir()] == [RUN]


def test_an_unfinished_run_of_the_same_arguments_is_resumed(tmp_path):
    with claim(tmp_path / "out", ARGUMENTS) as folder:
        (folder.work / "state").write_text("half")
    with claim(tmp_path / "out", ARGUMENTS) as folder:
        assert folder.resumed
        assert (folder.work / "state").read_text() == "half"


def result_in(path, arguments):
    path.mkdir(exist_ok=True)
    (path / "plan.json").write_text("{}")
    (path / RUN).write_text(json.dumps({"arguments": arguments}))


def test_other_arguments_and_finished_runs_are_refused_unless_forced(tmp_path):
    with claim(tmp_path, ARGUMENTS) as folder:
        (folder.work / "state").write_text("half")
    with pytest.raises(ArgumentError, match="an unfinished run of other arguments"), claim(tmp_path, {"seed": 1}):
        pass
    with claim(tmp_path, {"seed": 1}, force=True) as folder:
        assert not folder.resumed
        assert not (folder.work / "state").exists()
    result_in(tmp_path / "done", ARGUMENTS)
    with pytest.raises(ArgumentError, match="the finished result of this run"), claim(tmp_path / "done", ARGUMENTS):
        pass
    with pytest.raises(ArgumentError, match="a result of other arguments"), claim(tmp_path / "done", {"seed": 1}):
        pass


def test_a_forced_run_that_stops_leaves_the_result_and_is_resumed(tmp_path):
    result_in(tmp_path, ARGUMENTS)
    with claim(tmp_path, {"seed": 1}, force=True) as folder:
        (folder.work / "state").write_text("half")
    assert read_arguments(tmp_path) == ARGUMENTS
    with claim(tmp_path, {"seed": 1}) as folder:
        assert folder.resumed


def test_a_failure_before_anything_was_done_leaves_no_trace(tmp_path):
    for path in (tmp_path / "new", tmp_path / "old"):
        if path.name == "old":
            result_in(path, ARGUMENTS)
        with pytest.raises(ZeroDivisionError), claim(path, {"seed": 1}, force=True):
            raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    assert {p.name for p in (tmp_path / "old").iterdir()} == {"plan.json", RUN}


def test_files_of_others_are_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    for force in (False, True):
        with pytest.raises(ArgumentError, match=r"holds thesis\.tex, which secateur did not write"):
            claim(tmp_path, ARGUMENTS, force=force).__enter__()
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "model.safetensors").write_text("someone's")
    with pytest.raises(ArgumentError, match="is not empty, which secateur did not write"):
        claim(tmp_path, ARGUMENTS, force=True).__enter__()


def test_a_folder_in_use_is_refused(tmp_path):
    code = (
        "import sys; from secateur.run.folder import claim\n"
        f"with claim({str(tmp_path / 'out')!r}, {{}}):\n    print('taken', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "taken\n"
        with (
            pytest.raises(ArgumentError, match="in use by another process"),
            claim(tmp_path / "out", {}, force=True),
        ):
            pass
        other.kill()
    with claim(tmp_path / "out", {}) as folder:  # a killed run leaves no lock behind
        assert folder.resumed


def test_what_cannot_be_an_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="is a file, expected a folder"), claim(tmp_path / "file", {}):
        pass
    with pytest.raises(ArgumentError, match="cannot be written"), claim(tmp_path / "file" / "deeper", {}):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"arguments": 3, "state": "done"})])
def test_damaged_arguments(tmp_path, text):
    result_in(tmp_path, ARGUMENTS)
    (tmp_path / RUN).write_text(text)
    with pytest.raises(FormatError, match="is damaged"):
        read_arguments(tmp_path)
    with pytest.raises(ArgumentError, match="give another --out"), claim(tmp_path, ARGUMENTS):
        pass


def test_a_folder_without_arguments(tmp_path):
    with pytest.raises(FormatError, match="no such file"):
        read_arguments(tmp_path)


def test_what_is_left_of_a_run_that_was_killed_while_it_tidied_up_is_not_gone_on_from(tmp_path, monkeypatch):
    with claim(tmp_path, ARGUMENTS) as folder:
        (folder.work / "state").write_text("whole")
        (tmp_path / "plan.json").write_text("{}")

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr("secateur.run.folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            finished_in_place(folder)
        monkeypatch.undo()
    assert (tmp_path / ".work" / "state").exists()
    with pytest.raises(ArgumentError, match="the finished result of this run"), claim(tmp_path, ARGUMENTS):
        pass


def test_files_that_came_with_a_result_are_known_as_its_own(tmp_path, monkeypatch):
    """Whatever a checkpoint carries, a result can be replaced, and a run killed while it moved its files goes on."""
    with claim(tmp_path / "out", ARGUMENTS) as folder:
        (folder.work / "result").mkdir()
        for name in ("llm.json", "params.json", "tekken.model"):
            (folder.work / "result" / name).write_text("{}")

        def killed(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("secateur.run.folder.finished_in_place", killed)
            with pytest.raises(KeyboardInterrupt):
                folder.place(folder.work / "result")
        assert (tmp_path / "out" / "params.json").exists()
    with claim(tmp_path / "out", ARGUMENTS) as folder:
        assert folder.resumed
        finished_in_place(folder)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["llm.json", "params.json", RUN, "tekken.model"]
    with claim(tmp_path / "out", {"seed": 1}, force=True):
        pass
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ArgumentError, match=r"holds notes\.txt"), claim(tmp_path / "out", {"seed": 2}, force=True):
        pass
