"""A sparse training on disk, to go on from: one file, whole or not there."""

from __future__ import annotations

from pathlib import Path

from secateur.errors import FormatError
from secateur.train.sparse import Sparse
from secateur.train.state import load_state, save_state


def save_training(folder: Path | str, sparse: Sparse) -> Path:
    """Write what `Sparse.state_dict` holds into a folder of its own; a killed write leaves the one before.

    The model's weights and the optimizer's state are saved by whoever saves them.

    Example:
        >>> import tempfile, torch
        >>> from secateur.train.schedule import one_shot
        >>> from secateur.train.dynamic import gmp
        >>> net = torch.nn.Linear(4, 4)
        >>> sparse = Sparse(net, torch.optim.SGD(net.parameters(), lr=0.1), gmp(one_shot(0.5)))
        >>> folder = tempfile.mkdtemp()
        >>> save_training(folder, sparse).name
        'state-000000000.safetensors'
        >>> load_training(folder, sparse)
    """
    state = sparse.state_dict()
    tensors = {f"{part}/{name}": t for part in ("masks", "memory") for name, t in state[part].items()}
    told = {k: state[k] for k in ("step", "method", "optimizer")}
    return save_state(Path(folder), state["step"], tensors, told)


def load_training(folder: Path | str, sparse: Sparse) -> None:
    """Go on from a folder that `save_training` wrote to.

    Raises:
        FormatError: there is nothing, or nothing whole.
        ArgumentError, PlanError: as `Sparse.load_state_dict`.
    """
    found = load_state(Path(folder))
    if found is None:
        raise FormatError(f"{folder} holds no state of a sparse training: give the folder that save_training wrote to")
    tensors, told = found
    parts: dict[str, dict[str, object]] = {"masks": {}, "memory": {}}
    for key, t in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = t
    sparse.load_state_dict({**told, **parts})
