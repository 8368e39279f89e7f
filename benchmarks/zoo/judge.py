"""What is found out about one model of the zoo: coverage, the oracle at two cuts, a folder that loads again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from case import Case, made
from torch import Tensor, nn

import secateur as sc
from secateur.calling import run, tensors_of

CUTS = (0.3, 0.6)


def judge(case: Case, folder: Path) -> dict[str, Any]:
    """The row of one model. The model cut by 60 % lies in ``folder``, with its outputs, for another process."""
    model, example = made(case)
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters()), "status": "ok", "reason": ""}
    _reset_peak()
    before = _status("VmRSS")
    groups = sc.couple(sc.trace(model, example))
    row["peak_mb"] = round(max(0, _status("VmHWM") - before) / 1e6, 1)
    kinds = Counter(g.kind for g in groups)
    row["units"] = " ".join(f"{kind}:{kinds[kind]}" for kind in sorted(kinds))
    row["prunable_share"] = round(groups.coverage().share, 4)
    errors = []
    for k, share in enumerate(CUTS):
        plan = sc.random_plan(groups, share, seed=k)
        small = sc.apply(plan, model)
        report = sc.verify(model, plan, small, example)
        errors.append(report.max_error)
        if not report.ok:
            wrong = next(r for r in report if r.ok is False)
            row |= {"status": "wrong", "reason": f"{share:.0%}: {wrong.what}: {wrong.note or wrong.pruned}"}
            break
    row["max_error"] = f"{max(errors):.1e}"
    row["kept_share"] = round(sum(p.numel() for p in small.parameters()) / row["params"], 4)
    sc.save(folder, small, plan, overwrite=True)
    torch.save(outputs(small, example), folder / "outputs.pt")
    return row


def reloads(case: Case, folder: Path) -> bool:
    """Whether the folder loads in this process and computes the same bits as where it was saved."""
    model, example = made(case)
    loaded = sc.load(folder, lambda: model)
    wanted = torch.load(folder / "outputs.pt", weights_only=True)
    got = outputs(loaded, example)
    return len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """What the model returns, from one thread and one seed; NaN would never be equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(2)
    try:
        with torch.no_grad():
            return [t.detach().clone().nan_to_num(123.0) for t in tensors_of(run(model, example))]
    finally:
        torch.set_num_threads(threads)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
