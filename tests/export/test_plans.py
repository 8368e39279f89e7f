"""Plans on disk: the same bytes for the same plan, and nothing that is damaged is read."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.errors import FormatError
from secateur.export.plans import plan_bytes, read_header
from secateur.types import Plan
from tiny import attention, groups_of, mlp

HERE = Path(__file__).parent


@functools.cache
def a_plan() -> Plan:
    """Heads and neurons cut: masks, attributes and kinds."""
    return sc.random_plan(groups_of(attention(), torch.zeros(1, 5, 16)), 0.5, seed=2)


def assert_equal(one: Plan, other: Plan) -> None:
    for what in ("keep", "axes", "renumber"):
        a, b = getattr(one, what), getattr(other, what)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[k], b[k]) and b[k].dtype == bool for k in a)
    for what in ("attributes", "kinds"):
        assert dict(getattr(one, what)) == dict(getattr(other, what))


def test_a_plan_comes_back(tmp_path: Path) -> None:
    plan = Plan(
        **{**vars(a_plan()), "renumber": {"ids": np.array([True, False, True])}, "made": {"seed": 1, "x": [0.5]}}
    )
    assert sc.save_plan(tmp_path / "new" / "folder", plan) == tmp_path / "new" / "folder"
    back = sc.load_plan(tmp_path / "new" / "folder")
    assert_equal(plan, back)
    assert back.made == plan.made
    assert plan_bytes(back) == plan_bytes(plan)


def test_the_header_is_readable(tmp_path: Path) -> None:
    sc.save_plan(tmp_path, a_plan())
    header = json.loads((tmp_path / "plan.json").read_text())
    assert header["schema"] == 1
    assert header["groups"]["up:neuron"] == {"kind": "neuron", "units": 24, "kept": 12}
    assert header["attributes"] == [{"module": "", "path": "heads", "old": 4, "new": 2}]
    assert header["made"]["criterion"] == "random_plan"


def test_numbers_of_numpy_and_keys_that_are_numbers_come_back(tmp_path: Path) -> None:
    made = {"seed": np.int64(3), "share": np.float32(0.5), "by": {2: "a", 10: "b"}, "pair": (1, 2)}
    plan = Plan(**{**vars(a_plan()), "made": made})
    sc.save_plan(tmp_path, plan)
    assert sc.load_plan(tmp_path).made == {"seed": 3, "share": 0.5, "by": {"2": "a", "10": "b"}, "pair": [1, 2]}
    with pytest.raises(FormatError, match="which JSON cannot"):
        plan_bytes(Plan(**{**vars(plan), "made": {"model": mlp(2, 2)}}))


def rewritten(folder: Path, **changes: Any) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damage_is_refused(tmp_path: Path) -> None:
    sc.save_plan(tmp_path, a_plan())
    header, masks = ((tmp_path / n).read_bytes() for n in ("plan.json", "plan.safetensors"))
    for edit, words in (
        (lambda: (tmp_path / "plan.json").unlink(), "holds no plan.json: give a folder that secateur wrote"),
        (lambda: (tmp_path / "plan.json").write_text("[]"), "schema 'list'; this version reads 1"),
        (lambda: rewritten(tmp_path, schema=2), "schema 2; this version reads 1"),
        (lambda: rewritten(tmp_path, made={"seed": 9}), "damaged or was edited"),
        (lambda: (tmp_path / "plan.json").write_bytes(b"\xff\xfe"), "cannot be read as a plan"),
        (lambda: (tmp_path / "plan.safetensors").unlink(), "no readable plan: FileNotFoundError"),
        (lambda: (tmp_path / "plan.safetensors").write_bytes(masks[:-1]), "damaged or belongs to another plan"),
        (lambda: (tmp_path / "plan.safetensors").write_bytes(b""), "damaged or belongs to another plan"),
    ):
        edit()
        with pytest.raises(FormatError, match=words):
            sc.load_plan(tmp_path)
        (tmp_path / "plan.json").write_bytes(header)
        (tmp_path / "plan.safetensors").write_bytes(masks)
    sc.load_plan(tmp_path)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_and_no_cut_goes_unseen(tmp_path: Path, data: st.DataObject) -> None:
    plan = a_plan()
    sc.save_plan(tmp_path, plan)
    path = tmp_path / data.draw(st.sampled_from(["plan.json", "plan.safetensors"]))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[at:]
    path.write_bytes(bytes(raw))
    try:
        back = sc.load_plan(tmp_path)
    except FormatError:
        return
    assert_equal(plan, back)  # a space turned into another, the last line's end
    assert back.made == plan.made


def test_two_saves_do_not_mix(tmp_path: Path) -> None:
    groups = groups_of(mlp(4, 8, 2), torch.zeros(1, 4))
    for name, seed in (("a", 0), ("b", 1)):
        sc.save_plan(tmp_path / name, sc.random_plan(groups, 0.5, seed))
    (tmp_path / "a" / "plan.safetensors").write_bytes((tmp_path / "b" / "plan.safetensors").read_bytes())
    with pytest.raises(FormatError, match="belongs to another plan"):
        sc.load_plan(tmp_path / "a")
    assert read_header(tmp_path / "a")["made"]["seed"] == 0
