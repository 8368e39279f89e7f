"""The decoder blocks of a language model, told by structure: what is repeated, and called one after another."""

from __future__ import annotations

from torch import nn

from secateur.errors import TraceError


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks, in order: the repeated modules that hold the most parameters.

    A block is a child of an ``nn.ModuleList`` or ``nn.Sequential``, holds several matrices, and has tensors of the same
    names as its neighbour. That each gets what the one before it gives is checked when they are recorded.

    Args:
        model: any module; parameters on the meta device will do.

    Raises:
        TraceError: nothing is repeated.

    Example:
        >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> blocks_of(nn.Sequential(nn.Embedding(9, 4), nn.Sequential(block(), block()), nn.Linear(4, 9)))
        ('1.0', '1.1')
    """
    best: tuple[int, tuple[str, ...]] = (0, ())
    for path, container in model.named_modules():
        if isinstance(container, (nn.ModuleList, nn.Sequential)):
            for run in _runs(path, container):
                size = sum(_size(model.get_submodule(p)) for p in run)
                best = max(best, (size, run), key=lambda found: found[0])
    if not best[1]:
        raise TraceError(
            f"{type(model).__name__} has no list of blocks: expected an nn.ModuleList or nn.Sequential whose children "
            "hold matrices of the same names"
        )
    return best[1]


def _runs(path: str, container: nn.Module) -> list[tuple[str, ...]]:
    """Neighbours that are like each other."""
    children = [(f"{path}.{key}".strip("."), child) for key, child in container.named_children()]
    alike = [(p, {n for n, t in c.named_parameters() if t.dim() > 1}) for p, c in children]
    runs: list[list[str]] = []
    before: set[str] = set()
    for name, matrices in alike:
        if len(matrices) > 1 and runs and before & matrices:
            runs[-1].append(name)
        elif len(matrices) > 1:
            runs.append([name])
        else:
            runs.append([])
        before = matrices if len(matrices) > 1 else set()
    whole = len(children) == 1 and bool(runs[0])  # a model of one block
    return [tuple(r) for r in runs if len(r) > 1 or (whole and r)]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
