"""Models from the text that names them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.errors import ArgumentError, FormatError, TargetError
from secateur.run.models import load_model

CODE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).train()

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

ready = net()
number = 3
def nothing():
    return None
def needs(x):
    return x
def breaks():
    raise OSError("disk is gone")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_models.py").write_text(CODE)
    return tmp_path


def test_a_factory_gives_a_model_in_eval_mode_and_its_own_name(code):
    model, source = load_model("user_models:net")
    assert isinstance(model, nn.Sequential)
    assert not model.training
    assert source == "user_models:net"
    assert type(load_model("user_models:Net")[0]).__name__ == "Net"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("user_models:nett", "did you mean 'net'"),
        ("user_models:ready", "is a model, not a function"),
        ("user_models:number", "is int, not a function"),
        ("user_models:nothing", "returned NoneType, expected an nn.Module"),
        ("user_models:needs", "missing 1 required positional argument: 'x'; the factory is called without"),
        ("user_models:breaks", "OSError: disk is gone"),
        ("nosuchfolder", "there is no such folder; give module:factory"),
    ],
)
def test_factories_refused(code, spec, why):
    with pytest.raises(ArgumentError, match=why):
        load_model(spec)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nets.py", "written nets:NAME"),
        ("model.pt", "pickled files are never loaded"),
        ("model.onnx", "can be measured"),
        ("model.txt", "is a file; give module:factory"),
    ],
)
def test_files_refused_with_advice(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ArgumentError, match=why):
        load_model(str(tmp_path / name))


def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path):
    with pytest.raises(ArgumentError, match="but nothing"):
        load_model(str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ArgumentError, match=r"but notes\.txt"):
        load_model(str(tmp_path))


@pytest.fixture
def bert(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    model = BertModel(config).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["BertModel"]}))
    return tmp_path, model


def test_a_hugging_face_folder(bert, capsys):
    folder, model = bert
    found, config = load_model(str(folder))
    assert type(found) is type(model)
    assert config.hidden_size == 16
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).last_hidden_state, model(ids).last_hidden_state)
    assert capsys.readouterr() == ("", "")


def test_hugging_face_layers_that_would_be_random_are_refused(bert):
    folder, _ = bert
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "intermediate" not in k}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"2 tensors of BertModel are not in its files.*intermediate\.dense"):
        load_model(str(folder))


def test_hugging_face_folders_refused(bert, monkeypatch):
    folder, _ = bert
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(FormatError, match="names the class NoSuchModel"):
        load_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match="is not JSON"):
        load_model(str(folder))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(TargetError, match=r"pip install 'secateur\[huggingface\]'"):
        load_model(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match="never unpickles"):
        load_model(str(folder))


def test_a_damaged_weight_file_is_told(bert):
    folder, _ = bert
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="transformers could not load it as BertModel"):
        load_model(str(folder))
