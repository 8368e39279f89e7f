"""Checkpoints are read tensor by tensor; what is wrong with one is said before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llm.tiny_models import CONFIGS, make, tokens, write
from secateur.errors import ArgumentError, DataError, FormatError, TraceError
from secateur.llm.blocks import blocks_of
from secateur.llm.source import INDEX, Source
from secateur.llm.tensor_files import stored_in
from secateur.llm.walk import Walk, batches_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make("tied"), tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    shutil.copytree(checkpoint, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_is_read_as_it_is_in_the_model(kind: str, tmp_path: Path) -> None:
    model = make(kind, torch.bfloat16)
    source = Source.open(write(model, tmp_path / "model"))
    skeleton = source.skeleton()
    assert all(p.device.type == "meta" for p in skeleton.parameters())
    assert all(b.device.type == "cpu" for b in skeleton.buffers())
    assert len(blocks_of(skeleton)) == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(source.tensor(name), tensor), name
        assert source.dtype_of(name) == tensor.dtype
    assert source.parameters() == sum(p.numel() for p in model.parameters())


def test_rows_of_an_embedding_are_read_alone(checkpoint: Path) -> None:
    source = Source.open(checkpoint)
    at = torch.tensor([5, 1])
    assert torch.equal(source.rows("model.embed_tokens.weight", at), source.tensor("model.embed_tokens.weight")[at])


def test_a_missing_shard(folder: Path) -> None:
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-\d+\.safetensors is missing: the index names it"):
        Source.open(folder)


def test_a_shard_that_is_cut_off(folder: Path) -> None:
    file = next(folder.glob("model-00001*"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(FormatError, match=r"model-00001-of-\d+\.safetensors is cut off: .* ends at byte"):
        Source.open(folder)


def test_an_entry_that_the_index_does_not_have(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"does not name model\.norm\.weight, which is in"):
        Source.open(folder)


def test_a_tensor_that_no_file_has(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    file = folder / index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    held = load_file(file)
    held["model.layers.1.mlp.upward.weight"] = held.pop("model.layers.1.mlp.up_proj.weight")
    save_file(held, file)
    with pytest.raises(FormatError, match=r"does not hold model\.layers\.1\.mlp\.up_proj\.weight, which"):
        Source.open(folder)
    index["weight_map"]["model.layers.1.mlp.upward.weight"] = index["weight_map"].pop(
        "model.layers.1.mlp.up_proj.weight"
    )
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"upward\.weight in it is no tensor of the model"):
        Source.open(folder)


def test_a_configuration_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(FormatError, match=r"has the shape \(32, 48\); config\.json gives .* \(32, 64\)"):
        Source.open(folder)


def test_what_is_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArgumentError, match=r"is no folder and no \.gguf file"):
        Source.open(tmp_path / "nothing")
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"has no config\.json"):
        Source.open(folder)


def test_tokens_of_another_vocabulary(checkpoint: Path) -> None:
    with pytest.raises(DataError, match=r"token 96 is not in the model's vocabulary of 96"):
        Walk.begin(Source.open(checkpoint), torch.full((1, 4), 96))
    for wrong in (torch.zeros(4), torch.zeros(0, 4, dtype=torch.int64), torch.zeros(1, 4)):
        with pytest.raises(DataError, match=r"tokens are int64 \(samples, window\)"):
            Walk.begin(Source.open(checkpoint), wrong)


class Between(nn.Module):
    """Does something to the stream between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = 2 * block(x)
        return x


def test_models_that_cannot_be_run_block_by_block() -> None:
    with pytest.raises(TraceError, match=r"blocks\.1 does not get what blocks\.0 gives"):
        Walk.begin(Source.open(Between()), tokens())
    with pytest.raises(TraceError, match="Linear has no list of blocks"):
        Walk.begin(Source.open(nn.Linear(2, 2)), tokens())


class Plain(Between):
    """A model of no library."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_module_of_no_library_is_walked_through() -> None:
    model, ids = Plain(), tokens()
    walk = Walk.begin(Source.open(model), ids)
    for index in range(2):
        live = walk.live(index)
        walk.pass_on(live)
    with torch.no_grad():
        torch.testing.assert_close(walk.hidden[0], model(ids))


@pytest.mark.parametrize("entry", [{"shape": [1]}, [1], {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}])
def test_a_damaged_entry_of_a_header_is_named(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"a.weight": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(FormatError, match=r"the entry of a\.weight is damaged .*copy it again"):
        stored_in(file)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_no_samples_are_refused(size: int) -> None:
    with pytest.raises(ArgumentError, match=f"at least 1; got {size}"):
        batches_of(tokens(), size)
