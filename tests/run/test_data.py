"""Data and examples from the text that names them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.errors import ArgumentError, DataError
from secateur.run.data import describe, held_out, load_data, load_example

CODE = """
import torch
def batches():
    return [torch.ones(4, 3), torch.zeros(4, 3)]
def stream():
    for i in range(3):
        yield torch.full((2, 3), float(i))
one_shot = iter(batches())
whole = batches()
def tensor():
    return torch.ones(2)
def number():
    return 3
def example():
    return {"x": torch.ones(1, 2)}
def pair():
    return [(torch.ones(4, 3), torch.zeros(4))]
def nothing():
    return []
def broken():
    return [torch.tensor([[float("nan"), 1.0]])]
"""


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_data.py").write_text(CODE)
    return tmp_path


def test_callables_and_iterables():
    assert [b.shape[0] for b in load_data("user_data:batches")] == [4, 4]
    assert len(load_data("user_data:whole")) == 2


def test_a_generator_can_be_gone_over_again():
    data = load_data("user_data:stream")
    assert [b[0, 0].item() for b in data] == [b[0, 0].item() for b in data] == [0, 1, 2]


@pytest.mark.parametrize(
    ("spec", "error", "why"),
    [
        ("user_data:tensor", DataError, "gave Tensor, expected an iterable of batches"),
        ("user_data:number", DataError, "gave int"),
        ("user_data:one_shot", DataError, "name a function that makes it"),
        ("user_data:bathces", ArgumentError, "did you mean 'batches'"),
        ("nothing.npy", ArgumentError, "there is no such file"),
        ("data.csv", ArgumentError, "give module:callable, or a .npy"),
    ],
)
def test_data_refused(spec, error, why):
    with pytest.raises(error, match=why):
        load_data(spec)


def test_one_array_is_the_only_argument_and_float64_becomes_float32(code):
    np.save(code / "x.npy", np.arange(10.0).reshape(5, 2))
    batches = load_data("x.npy", batch_size=2)
    assert [tuple(b.shape) for b in batches] == [(2, 2), (2, 2), (1, 2)]
    assert batches[0].dtype == torch.float32
    assert torch.equal(torch.cat(batches), torch.arange(10.0).reshape(5, 2))


def test_several_arrays_are_keyword_arguments_and_targets_go_beside(code):
    ids, mask, targets = np.arange(6).reshape(3, 2), np.ones((3, 2), np.int64), np.array([0, 1, 0])
    np.savez(code / "x.npz", input_ids=ids, mask=mask, targets=targets)
    (example, labels), _ = load_data("x.npz", batch_size=2)
    assert set(example) == {"input_ids", "mask"}
    assert labels.tolist() == [0, 1]
    save_file({"x": torch.ones(3, 2), "targets": torch.zeros(3)}, code / "x.safetensors")
    ((x, labels),) = load_data("x.safetensors")
    assert x.shape == (3, 2)
    assert labels.shape == (3,)


def test_files_refused(code):
    np.save(code / "nan.npy", np.array([[1.0, np.nan]]))
    with pytest.raises(DataError, match="1 values that are NaN or inf; clean the data"):
        load_data("nan.npy")
    np.save(code / "empty.npy", np.zeros((0, 3)))
    with pytest.raises(DataError, match="is empty"):
        load_data("empty.npy")
    np.save(code / "scalar.npy", np.array(3.0))
    with pytest.raises(DataError, match="is empty"):
        load_data("scalar.npy")
    np.savez(code / "uneven.npz", a=np.ones(3), b=np.ones(2))
    with pytest.raises(DataError, match="different numbers of items"):
        load_data("uneven.npz")
    np.savez(code / "targets.npz", targets=np.ones(3))
    with pytest.raises(DataError, match="the inputs are missing"):
        load_data("targets.npz")
    np.save(code / "object.npy", np.array([{}, 3], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled ones never are"):
        load_data("object.npy")
    (code / "cut.npy").write_bytes((code / "nan.npy").read_bytes()[:20])
    with pytest.raises(DataError, match="could not be read"):
        load_data("cut.npy")
    (code / "cut.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match="could not be read"):
        load_data("cut.npz")
    (code / "cut.safetensors").write_bytes(b"12345678910")
    with pytest.raises(DataError, match="not a safetensors file"):
        load_data("cut.safetensors")
    np.save(code / "x.npy", np.ones((2, 2)))
    with pytest.raises(ArgumentError, match="batch size must be at least 1"):
        load_data("x.npy", batch_size=0)


def test_shapes():
    x = load_example("1x3x8x8", None)
    assert x.shape == (1, 3, 8, 8)
    assert x.dtype == torch.float32
    assert torch.equal(x, load_example("1x3x8x8", None))
    two = load_example("1x4, 1x2:float64", None)
    assert [t.dtype for t in two] == [torch.float32, torch.float64]
    named = load_example("ids=1x50:int64:30,mask=1x50:ones,kinds=1x50:zeros,on=1x50:bool", None)
    assert 2 < int(named["ids"].max()) < 30
    assert bool((named["mask"] == 1).all())
    assert not bool(named["kinds"].any())
    assert named["on"].dtype == torch.bool
    assert describe(named) == "ids 1x50 int64, mask 1x50 int64, kinds 1x50 int64, on 1x50 bool"
    assert describe(two) == "1x4 float32, 1x2 float64"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("1x3xx8", "is not a shape"),
        ("1,", "is not a shape"),
        ("1x3:flaot32", "did you mean 'float32'"),
        ("a=1x3,1x2", "name every input once"),
        ("a=1,a=2", "name every input once"),
        ("photo.jpg", "give a shape such as"),
        ("user_data:exmaple", "did you mean 'example'"),
        ("user_data:number", "gave int, expected a tensor"),
    ],
)
def test_examples_refused(spec, why):
    with pytest.raises(ArgumentError, match=why):
        load_example(spec, None)


def test_example_from_a_callable():
    assert load_example("user_data:example", None)["x"].shape == (1, 2)
    assert load_example("user_data:tensor", None).shape == (2,)


def test_the_first_item_of_the_first_batch():
    assert load_example(None, load_data("user_data:batches")).shape == (1, 3)
    assert load_example(None, load_data("user_data:pair"), nn.Linear(3, 1)).shape == (1, 3)
    batch = [{"ids": torch.ones(4, 7), "flag": True}]
    found = load_example(None, batch)
    assert found["ids"].shape == (1, 7)
    assert found["flag"] is True


def test_no_example():
    with pytest.raises(ArgumentError, match="give --example"):
        load_example(None, None)
    with pytest.raises(DataError, match="data is empty"):
        load_example(None, load_data("user_data:nothing"))
    with pytest.raises(DataError, match="NaN or inf"):
        load_example(None, load_data("user_data:broken"))


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (4, 2), (9, 2)])
def test_batches_are_held_out_half_at_most(count: int, held: int) -> None:
    data = list(range(count))
    first, rest = held_out(data, 2)
    assert first == data[:held]
    assert list(rest) == list(rest) == data[held:]


def test_a_single_batch_is_all_there_is(caplog: pytest.LogCaptureFixture) -> None:
    first, rest = held_out(["one"], 2)
    assert first == list(rest) == ["one"]
    assert "give more batches" in caplog.text
