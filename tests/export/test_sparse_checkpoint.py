"""The sparse folder: every bit comes back, its bytes follow the sparsity, and nothing damaged loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from secateur.errors import FormatError, PlanError
from secateur.export.checkpoint import load
from secateur.export.sparse import HEADER, TENSORS, load_masks, load_sparse, pack, save_sparse, unpack
from secateur.run.models import load_model

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(30, 8), nn.BatchNorm1d(8), nn.Linear(8, 30)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(40).reshape(5, 8) % 3)
        self.register_buffer("flags", torch.arange(9) % 4 == 0)
        self.register_buffer("unsaved", torch.linspace(0, 1, 4), persistent=False)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def same(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert (x.dtype, x.shape, bits(x)) == (y.dtype, y.shape, bits(y)), name


def sparse_net(dtype=torch.float32, keep=0.1):
    torch.manual_seed(0)
    net = Tied()
    with torch.no_grad():
        net.embed.weight *= torch.rand(30, 8) < keep
        net.embed.weight[3, 3], net.embed.weight[4, 4] = -0.0, float("inf")
        net.norm.running_mean.normal_()
    return net.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_every_bit_comes_back_in_another_process_too(tmp_path, dtype):
    net = sparse_net(dtype)
    folder = save_sparse(tmp_path / "net", net)
    again = load_sparse(folder, Tied)
    same(again, net)
    assert again.head.weight is again.embed.weight
    assert again.unsaved.dtype == dtype
    assert torch.signbit(again.embed.weight[3, 3])
    assert not again.training
    same(load(folder, Tied), net)
    assert sorted(p.name for p in folder.iterdir()) == [HEADER, TENSORS]


def test_it_loads_in_another_process(tmp_path):
    folder = save_sparse(tmp_path / "net", sparse_net())
    code = f"""
import torch
from test_sparse_checkpoint import Tied, sparse_net, same
from secateur.export.sparse import load_sparse
same(load_sparse({str(folder)!r}, Tied), sparse_net())
"""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": paths})


@given(st.data())
def test_pack_and_unpack_are_inverse_to_the_bit(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
    size = int(torch.Size(shape).numel())
    flat = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size)), dtype=torch.int64)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    tensor, keep = flat.to(dtype).reshape(shape), keep.reshape(shape)
    packed = pack(tensor, keep)
    assert len(packed.mask) == -(-size // 8)
    assert len(packed.values) == int(keep.sum())
    text = "".join(f"{b:08b}" for b in packed.mask.tolist())
    assert text[:size] == "".join("01"[k] for k in keep.reshape(-1).tolist())
    found, mask = unpack(packed, shape)
    assert torch.equal(mask, keep)
    assert bits(found) == bits(torch.where(keep, tensor, torch.zeros_like(tensor)))


@pytest.mark.parametrize("kept", [0, 1, 17, 500, 960, 970, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_follow_the_sparsity(tmp_path, dtype, kept):
    net = nn.Linear(40, 25, bias=False)
    with torch.no_grad():
        net.weight.copy_((torch.arange(1000) < kept).reshape(25, 40))
    net.to(dtype)
    folder = save_sparse(tmp_path / "net", net)
    with safe_open(folder / TENSORS, "pt") as f:
        stored = sum(f.get_tensor(k).numel() * f.get_tensor(k).element_size() for k in f.keys())  # noqa: SIM118
    item = net.weight.element_size()
    assert stored == min(kept * item + 125, 1000 * item)
    same(load_sparse(folder, lambda: nn.Linear(40, 25, bias=False)), net)


def test_masks_come_back_and_what_they_keep_stays_kept(tmp_path):
    net = sparse_net()
    masks = {"embed.weight": net.embed.weight.detach() != 0}
    masks["embed.weight"][3, 3], masks["embed.weight"][0] = True, True  # some kept ones are zero
    folder = save_sparse(tmp_path / "net", net, masks)
    found = load_masks(folder)
    assert torch.equal(found["embed.weight"], masks["embed.weight"])
    assert torch.equal(load_sparse(folder, Tied).embed.weight, net.embed.weight)
    alias = save_sparse(tmp_path / "alias", net, {"head.weight": masks["embed.weight"]})
    assert torch.equal(load_masks(alias)["embed.weight"], masks["embed.weight"])
    other = load_masks(save_sparse(tmp_path / "none", net))
    assert sorted(other) == ["embed.weight", "table"]  # of what is stored sparse; no vectors
    full = {"embed.weight": torch.ones(30, 8, dtype=torch.bool)}
    assert load_masks(save_sparse(tmp_path / "full", net, full))["embed.weight"].all()


def test_masks_that_do_not_fit_are_refused(tmp_path):
    net = sparse_net()
    keep = net.embed.weight.detach() != 0
    for masks, words in [
        ({"nothing": keep}, "which the model does not have"),
        ({"embed.weight": keep.float()}, "expected bool"),
        ({"embed.weight": keep[1:]}, "expected bool"),
        ({"embed.weight": torch.zeros_like(keep)}, "entries of embed.weight are not zero where"),
    ]:
        with pytest.raises(PlanError, match=words):
            save_sparse(tmp_path / "net", net, masks)
    assert not (tmp_path / "net").exists()


def test_a_folder_in_use_stays_and_an_interrupted_write_leaves_nothing(tmp_path):
    folder = save_sparse(tmp_path / "net", sparse_net())
    with pytest.raises(FormatError, match="is in use"):
        save_sparse(folder, sparse_net())

    def stops(temporary):
        raise KeyboardInterrupt

    other = sparse_net(keep=0.9)
    with pytest.raises(KeyboardInterrupt):
        save_sparse(folder, other, overwrite=True, extra=stops)
    same(load_sparse(folder, Tied), sparse_net())
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    save_sparse(folder, other, overwrite=True)
    same(load_sparse(folder, Tied), other)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", [HEADER, TENSORS])
def test_a_file_cut_short_or_changed_is_refused(tmp_path, name, part):
    folder = save_sparse(tmp_path / "net", sparse_net())
    whole = (folder / name).read_bytes()
    at = int(part * len(whole))
    (folder / name).write_bytes(whole[:at])
    with pytest.raises(FormatError):
        load_sparse(folder, Tied)
    flipped = bytearray(whole)
    flipped[at] ^= 4
    (folder / name).write_bytes(flipped)
    with pytest.raises(FormatError):
        load_sparse(folder, Tied)
    with pytest.raises(FormatError):
        load_masks(folder)


def test_a_missing_file_another_version_and_another_model_are_refused(tmp_path):
    folder = save_sparse(tmp_path / "net", sparse_net())
    with pytest.raises(PlanError, match="does not match"):
        load_sparse(folder, lambda: nn.Linear(2, 2))
    with pytest.raises(FormatError, match="give sc.load a function"):
        load_sparse(folder)
    (folder / TENSORS).rename(folder / "away")
    with pytest.raises(FormatError, match="is missing"):
        load_sparse(folder, Tied)
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps({**header, "version": 99}))
    with pytest.raises(FormatError, match="'secateur-sparse' 99"):
        load_sparse(folder, Tied)
    with pytest.raises(FormatError, match="no such file"):
        load_sparse(tmp_path / "nowhere", Tied)


def test_a_transformers_model_needs_no_factory(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    net = BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=20)
    ).eval()
    with torch.no_grad():
        net.encoder.layer[0].intermediate.dense.weight[:, ::2] = 0
    folder = save_sparse(tmp_path / "bert", net)
    same(load(folder), net)
    same(load_model(str(folder))[0], net)


def test_a_model_on_the_command_line_is_built_by_the_factory_that_the_folder_names(tmp_path):
    net = nn.Identity()
    folder = save_sparse(tmp_path / "net", net, factory="torch.nn:Identity")
    model, source = load_model(str(folder))
    assert isinstance(model, nn.Identity)
    assert source is None
