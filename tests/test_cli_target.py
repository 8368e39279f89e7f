"""``secateur target``: what there is, and the service as a process."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import requests

from secateur.cli.app import main
from secateur.cli.target import missing, nbytes_of, specs
from secateur.errors import ArgumentError


def test_the_list_names_what_is_here_and_the_extra_of_what_is_not(capsys, monkeypatch):
    assert main(["target", "list", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["eager"] == {"name": "eager", "installed": True, "extra": "", "missing": [], "remote": False}
    assert rows["onnxruntime"]["installed"]
    assert rows["onnxruntime"]["remote"]
    monkeypatch.setattr("secateur.cli.target._installed", lambda name: name != "onnxruntime")
    assert missing("onnx") == ["onnxruntime"]
    assert main(["target", "list"]) == 0
    assert "pip install 'secateur[onnx]'" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "0", "-1GB", "1XB", "nan", "two"])
def test_sizes_that_are_none(text):
    assert nbytes_of("2 GB") == nbytes_of("2g") == 2 * 10**9
    with pytest.raises(ArgumentError, match="is no size"):
        nbytes_of(text)


def test_only_targets_that_load_files_are_served():
    with pytest.raises(ArgumentError, match="eager: it writes no file"):
        specs("eager")
    with pytest.raises(ArgumentError, match="served there, not here"):
        specs("onnxruntime@host:1")
    with pytest.raises(ArgumentError, match="no target is called 'onxruntime'"):
        specs("onxruntime")
    with pytest.raises(ArgumentError, match="names none"):
        specs(" , ")
    assert specs("onnxruntime, secateur:onnxruntime") == {"onnxruntime": "secateur:onnxruntime"}


def test_a_service_that_cannot_start_says_why(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECATEUR_TOKEN", "a-token-of-the-tests")
    assert main(["target", "serve", "--tls-cert", "x"]) == 64
    assert main(["target", "serve", "--tls-cert", "x", "--tls-key", "y"]) == 1
    assert main(["target", "serve", "--token-file", str(tmp_path / "none")]) == 64
    assert main(["target", "serve", "--host", "192.0.2.1"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    for words in ("go together", "cannot be used", "cannot be read", "is not encrypted", "cannot listen on 192.0.2.1"):
        assert words in said
    assert "a-token-of" not in said


def test_the_service_as_a_process_tells_its_token_once_and_leaves_nothing(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SECATEUR_")} | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "secateur.cli", "target", "serve", "--targets", "onnxruntime"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            token = re.fullmatch(r"SECATEUR_TOKEN=(\S{40,})\n", process.stdout.readline())[1]
            at = re.fullmatch(r"serving onnxruntime on (127\.0\.0\.1:\d+)\n", process.stdout.readline())[1]
            answer = requests.get(f"http://{at}/", headers={"Authorization": f"Bearer {token}"}, timeout=20)
            assert answer.json()["targets"] == ["onnxruntime"]
            assert "onnxruntime" in answer.json()["versions"]
            assert list(tmp_path.glob("secateur-*/serve-*"))
        finally:
            process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate()
    assert process.returncode == 0
    assert token not in rest + errors
    assert list(tmp_path.iterdir()) == []
