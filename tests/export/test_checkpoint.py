"""The checkpoint folder: what is saved loads again to the bit, in another process, and nothing damaged loads."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur.calling import run, tensors_of
from secateur.errors import FormatError, PlanError
from secateur.types import Example
from tiny import Attention, attention, cnn, cut_evenly, mlp, state_of

HERE = Path(__file__).parent
PATHS = os.pathsep.join([*sys.path, str(HERE), str(HERE.parent)])


class Language(nn.Module):
    """Tied embedding and head; a buffer that is built and not saved, a cut one among them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.places: Tensor
        self.gain: Tensor
        self.register_buffer("places", torch.linspace(0.1, 1, 8), persistent=False)
        self.register_buffer("gain", torch.linspace(1, 2, 10), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.places[: x.shape[1], None]
        return self.head(h + self.down(torch.relu(self.up(h)) * self.gain))


def bert(**config: Any) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50)
    return BertModel(BertConfig(**sizes, **config)).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
    config = LlamaConfig(**sizes, intermediate_size=48, tie_word_embeddings=True, use_cache=False)
    return LlamaForCausalLM(config).eval()


WORDS = torch.tensor([[1, 5, 2, 7]])
Make = Callable[[], nn.Module]
CASES: dict[str, tuple[Make, Example, bool]] = {  # builds it, its example, whether loading needs the builder
    "mlp": (lambda: mlp(4, 8, 6, 2), torch.ones(2, 4), True),
    "cnn": (cnn, torch.ones(2, 3, 8, 8), True),
    "attention": (attention, torch.ones(2, 5, 16), True),
    "language": (Language, WORDS, True),
    "half": (lambda: Language().to(torch.bfloat16), WORDS, True),
    "bert": (bert, {"input_ids": WORDS}, False),
    "bert, eager": (lambda: bert(attn_implementation="eager"), {"input_ids": WORDS}, False),
    "bert, half": (lambda: bert().to(torch.bfloat16), {"input_ids": WORDS}, False),
    "llama": (llama, {"input_ids": WORDS}, False),
}
BUILT_AS = {"half": Language}  # the builder gives float32


def outputs(model: nn.Module, example: Example) -> dict[str, Tensor]:
    with torch.no_grad():
        return {str(i): t.contiguous().clone() for i, t in enumerate(tensors_of(run(model.eval(), example)))}


def load_case(folder: Path, name: str) -> nn.Module:
    make, _, needs = CASES[name]
    return sc.load(folder / name, BUILT_AS.get(name, make) if needs else None)


def load_all(folder: Path) -> None:
    """Run in another process: what every saved case computes."""
    for name, (_, example, _) in CASES.items():
        save_file(outputs(load_case(folder, name), example), folder / f"{name}.out")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, nn.Module]]:
    """Every case cut, saved, and computed again by another process."""
    folder = tmp_path_factory.mktemp("saved")
    models = {}
    for name, (make, example, _) in CASES.items():
        plan, models[name] = cut_evenly(make().eval(), example, 0.5)
        with torch.no_grad():  # as if trained since the cut
            for p in models[name].parameters():
                p.mul_(1.01)
        sc.save(folder / name, models[name], plan)
    code = f"import pathlib, test_checkpoint; test_checkpoint.load_all(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PATHS}, check=True)
    return folder, models


@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_same_to_the_bit_in_a_new_process(saved: Any, name: str) -> None:
    folder, models = saved
    there, here = load_file(folder / f"{name}.out"), outputs(models[name], CASES[name][1])
    assert there.keys() == here.keys()
    for key, value in here.items():
        assert value.dtype == there[key].dtype
        assert torch.equal(value, there[key])


@pytest.mark.parametrize("name", CASES)
def test_everything_comes_back(saved: Any, name: str) -> None:
    folder, models = saved
    back, model = load_case(folder, name), models[name]
    assert type(back) is type(model)
    assert not any(m.training for m in back.modules())
    mine, theirs = state_of(model), state_of(back)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key].dtype == theirs[key].dtype
        assert torch.equal(mine[key], theirs[key]), key


def test_shared_weights_are_stored_once_and_shared_again(saved: Any) -> None:
    folder, _ = saved
    back = load_case(folder, "language")
    assert back.head.weight is back.embed.weight
    assert "head.weight" not in load_file(folder / "language" / "model.safetensors")
    back = load_case(folder, "llama")
    assert back.lm_head.weight is back.model.embed_tokens.weight


def test_the_configuration_is_the_uncut_one(saved: Any) -> None:
    folder, models = saved
    config = json.loads((folder / "llama" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (4, 2, 48)
    assert models["llama"].model.layers[0].mlp.down_proj.in_features == 24
    assert load_case(folder, "llama").model.layers[0].mlp.down_proj.in_features == 24
    from transformers import LlamaConfig

    back = sc.load(folder / "llama", LlamaConfig.from_dict(config))  # a config may be given
    example = CASES["llama"][1]
    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(back, example).values(), outputs(models["llama"], example).values(), strict=True)
    )


def test_an_uncut_model_may_be_given(tmp_path: Path) -> None:
    net = mlp(4, 8, 2)
    plan, small = cut_evenly(net, torch.ones(1, 4))
    sc.save(tmp_path / "out", small, plan)
    given = mlp(4, 8, 2, seed=5)
    assert sc.load(tmp_path / "out", given) is given
    assert torch.equal(given(torch.ones(1, 4)), small(torch.ones(1, 4)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan, small = cut_evenly(mlp(4, 8, 2), torch.ones(1, 4))
    return sc.save(tmp_path / "out", small, plan, factory="nets:build")


def build() -> nn.Module:
    return mlp(4, 8, 2)


def test_wrong_builders_are_refused(folder: Path) -> None:
    class Other(nn.Sequential):
        pass

    for builder, error, words in (
        (lambda: mlp(4, 9, 2), PlanError, r"cuts dim 0 of '0\.bias' from 8 positions, but its shape is \(9,\)"),
        (lambda: mlp(4, 8, 3), PlanError, r"does not match .*'2\.weight', '2\.bias'.*made by nets:build"),
        (lambda: mlp(4, 8, 2, 2), PlanError, r"does not match .*4\.bias"),
        (lambda: mlp(4, 8, 2, bias=False), PlanError, r"0\.bias"),
        (lambda: Other(*build()), PlanError, "holds a Sequential, and a .*Other was built"),
        (lambda: 3, FormatError, "the factory returned int, not a module"),
        ("nets:build", FormatError, "factory_or_config must be a function, a model or a config, got str"),
        (None, FormatError, r"holds a Sequential: give sc\.load a function.*nets:build"),
    ):
        with pytest.raises(error, match=words):
            sc.load(folder, builder)
    sc.load(folder, build)


def test_damage_is_refused(folder: Path, tmp_path: Path) -> None:
    plan, small = cut_evenly(mlp(4, 8, 2, seed=1), torch.ones(1, 4), seed=1)
    other = sc.save(tmp_path / "other", small, plan)
    only = sc.save_plan(tmp_path / "only", plan)
    held = {p.name: p.read_bytes() for p in folder.iterdir()}
    weights = held["model.safetensors"]
    for edit, words in (
        (lambda: (folder / "model.safetensors").unlink(), "is missing: the folder is incomplete"),
        (lambda: (folder / "model.safetensors").write_bytes(weights[:-4]), "is damaged or was replaced"),
        (lambda: (folder / "model.safetensors").write_bytes(b""), "is damaged or was replaced"),
        (lambda: (folder / "plan.json").write_bytes((other / "plan.json").read_bytes()), "another plan"),
        (
            lambda: [(folder / n).write_bytes((other / n).read_bytes()) for n in ("plan.json", "plan.safetensors")],
            "is damaged or was replaced",
        ),
        (lambda: (folder / "plan.json").write_bytes((only / "plan.json").read_bytes()), "another plan"),
    ):
        edit()
        with pytest.raises(FormatError, match=words):
            sc.load(folder, build)
        for name, data in held.items():
            (folder / name).write_bytes(data)
    with pytest.raises(FormatError, match=r"a plan without a model: use sc\.load_plan"):
        sc.load(only, build)
    with pytest.raises(FormatError, match="nowhere is no folder"):
        sc.load(tmp_path / "nowhere", build)
    sc.load(folder, build)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_of_the_weights_goes_unseen(folder: Path, data: st.DataObject) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(changed) if data.draw(st.booleans()) else raw[:at])
    with pytest.raises(FormatError, match="is damaged or was replaced"):
        sc.load(folder, build)
    path.write_bytes(raw)


def test_nothing_is_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    _, small = cut_evenly(mlp(4, 8, 2), torch.ones(1, 4))
    assert torch.equal(sc.load(folder, build)(torch.ones(2, 4)), small(torch.ones(2, 4)))


def test_state_that_only_pickle_could_keep_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    net = nn.Sequential(Extra(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan, small = cut_evenly(net, torch.ones(1, 4))
    with pytest.raises(FormatError, match=r"0\._extra_state of the model's state is dict, not a tensor"):
        sc.save(tmp_path / "out", small, plan)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_overwriting_is_whole(folder: Path) -> None:
    plan, small = cut_evenly(mlp(4, 8, 2, seed=1), torch.ones(1, 4), seed=1)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FormatError, match="is in use"):
        sc.save(folder, small, plan)

    def fails(temporary: Path) -> None:
        assert (temporary / "plan.json").is_file()
        raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        sc.save(folder, small, plan, overwrite=True, extra=fails)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "log").write_text("kept")
    sc.save(folder, small, plan, overwrite=True, carry=("log",), extra=lambda t: (t / "more").write_text("x"))
    assert torch.equal(sc.load(folder, build)(torch.ones(1, 4)), small(torch.ones(1, 4)))
    assert (folder / "log").read_text() == "kept"
    assert (folder / "more").is_file()
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_the_report_is_saved_with_it(tmp_path: Path) -> None:
    net = mlp(4, 8, 2)
    result = sc.prune(net, torch.randn(3, 4), budget=sc.Budget.of_dense(sc.params(net), 0.5))
    sc.save(tmp_path / "out", result.model, result.plan, result.report)
    assert sc.read_report(tmp_path / "out").ok
    assert (tmp_path / "out" / "report.html").is_file()


def test_two_saves_of_one_model_are_the_same_files(tmp_path: Path) -> None:
    plan, small = cut_evenly(attention(), torch.ones(1, 5, 16))
    one, two = sc.save(tmp_path / "1", small, plan), sc.save(tmp_path / "2", small, plan)
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


@functools.cache
def versions() -> dict[int, tuple[sc.Plan, nn.Module]]:
    """Two cuts of one model, by seed."""
    return {seed: cut_evenly(Attention(32, 8, 256), torch.ones(1, 3, 32), seed=seed) for seed in (0, 1)}


def save_until_killed() -> None:
    """Run in another process: for every line ``folder delay overwrite`` a child saves and is killed after a delay."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = versions()
    for line in sys.stdin:
        folder, delay, overwrite = line.split()
        child = os.fork()
        if child == 0:
            for i in range(10**6):
                plan, model = made[i % 2]
                if overwrite == "no":
                    folder = f"{line.split()[0]}-{i}"
                sc.save(folder, model, plan, overwrite=overwrite == "yes")
            os._exit(1)
        import signal
        import time

        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed", flush=True)


@pytest.fixture
def killer() -> Iterator[Callable[[Path, float, bool], None]]:
    code = "import test_checkpoint; test_checkpoint.save_until_killed()"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": PATHS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def kill(folder: Path, delay: float, overwrite: bool) -> None:
        stdin.write(f"{folder} {delay} {'yes' if overwrite else 'no'}\n")
        stdin.flush()
        assert stdout.readline() == "killed\n"

    yield kill
    stdin.close()
    process.wait()
    stdout.close()


def test_kill_9_at_any_moment_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, killer: Callable[[Path, float, bool], None]
) -> None:
    torch.manual_seed(0)
    made = versions()
    expected = [{n: t.detach() for n, t in m.state_dict().items()} for _, m in made.values()]
    folder, rng = tmp_path / "out", random.Random(0)
    sc.save(folder, made[0][1], made[0][0])
    for _ in range(40):
        killer(folder, rng.uniform(0, 0.08), True)
        state = sc.load(folder, lambda: Attention(32, 8, 256)).state_dict()
        assert any(
            all(torch.equal(state[n], e[n]) for n in e)
            for e in expected
            if e["up.weight"].shape == state["up.weight"].shape
        )
    fresh: list[Path] = []
    for i in range(60):
        killer(tmp_path / f"new{i}", rng.uniform(0, 0.01 * i), False)
        fresh = [p for p in tmp_path.iterdir() if p.name.startswith("new")]
        if len(fresh) > 20:
            break
    for path in fresh:  # what has its name is whole
        sc.load(path, lambda: Attention(32, 8, 256))
    assert fresh
