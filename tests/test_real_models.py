"""The pretrained models that users bring: masked equals shrunk, nothing pretended."""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch

import secateur as sc

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))


def _tokens(length: int, most: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, most, (1, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "groups", "units", "prunable"),
    [
        ("minilm", {"head": 6, "neuron": 6}, {"head": 12, "neuron": 1536}, 0.98),
        ("efficientnet_lite0", {"channel": 24}, {}, 0.99),
        ("smollm2", {"head": 30, "neuron": 30}, {"head": 3, "neuron": 1536}, 0.99),
    ],
)
def test_masked_equals_shrunk(name: str, groups: dict[str, int], units: dict[str, int], prunable: float) -> None:
    """Random plans at 30 % and 60 % in float64, every weight perturbed, a control that must disagree."""
    import materials

    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = getattr(materials, name)()
    example = {"minilm": _tokens(32, 30000), "smollm2": _tokens(12, 40000), "efficientnet_lite0": _image()}[name]
    before = {n: t.clone() for n, t in model.state_dict().items()} if name != "smollm2" else None
    found = sc.couple(sc.trace(model, example))
    assert {k: sum(g.kind == k for g in found) for k in groups} == groups
    assert all(g.units == units[g.kind] for g in found if g.kind in units)
    body = sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n and "pooler" not in n)
    touched = {s.name for g in found for s in g.slices}
    cut = sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and n in touched and "embed" not in n)
    assert cut / body >= prunable
    for seed, sparsity in enumerate((0.3, 0.6)):
        plan = sc.random_plan(found, sparsity, seed)
        small = sc.apply(plan, model)
        assert sum(p.numel() for p in small.parameters()) == found.params(plan.keep)
        report = sc.verify(model, plan, small, example)
        assert report.ok, [r for r in report if r.ok is False]
        assert report.max_error <= 1e-10
    if before is not None:
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
