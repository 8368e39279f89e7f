"""Save a result with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from secateur.evidence.report import write_report
from secateur.export.checkpoint import save_checkpoint
from secateur.types import Plan, Report


def save(
    folder: Path | str,
    model: nn.Module,
    plan: Plan,
    report: Report | None = None,
    *,
    factory: str | None = None,
    overwrite: bool = False,
    carry: tuple[str, ...] = (),
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write the checkpoint folder: weights, plan, ``report.json`` and ``report.html``, all of it or nothing.

    Args:
        folder: new or empty, unless ``overwrite``.
        model: the cut model, from `sc.prune` or `sc.apply`.
        plan: what cut it.
        report: the evidence, if there is any.
        factory: ``module:name`` that builds the uncut model, kept as a hint.
        overwrite: replace a folder that is in use; it stays whole until the new one is complete.
        carry: names of entries that the new folder has from the one that is overwritten.
        extra: writes more files into the folder before it appears.

    Raises:
        FormatError: the folder is in use.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> build = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net = build()
        >>> plan = sc.random_plan(sc.couple(sc.trace(net, torch.zeros(1, 4))), 0.5, seed=0)
        >>> small = sc.apply(plan, net)
        >>> folder = save(tempfile.mkdtemp() + "/small", small, plan)
        >>> torch.equal(sc.load(folder, build)(torch.ones(1, 4)), small(torch.ones(1, 4)))
        True
    """

    def write(temporary: Path) -> None:
        if report is not None:
            write_report(temporary, report)
        if extra is not None:
            extra(temporary)

    return save_checkpoint(folder, model, plan, factory=factory, overwrite=overwrite, carry=carry, extra=write)
