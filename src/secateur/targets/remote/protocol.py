"""What a workstation and a device say to each other: JSON, and safetensors for arrays. No code, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from torch import Tensor

from secateur.errors import ArgumentError, FormatError
from secateur.export.prepare import first_line
from secateur.types import Example

VERSION = 1
"""Of what is said; both sides must have the same."""
SHORTEST = 16
"""Characters of a token, at least."""
OPS = ("load", "measure", "peak", "call")

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}$")]
"""A plain file name: files find each other by it inside a folder that is made for one order."""


class Job(BaseModel):
    """A file to run, by the hashes of what was sent.

    Attributes:
        target: which of the targets that are served. threads: intra-op threads.
        files: name -> SHA-256 of the file and of all that goes with it. main: the one that is loaded.
        example: SHA-256 of the packed example.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    files: Annotated[dict[Name, Digest], Field(min_length=1, max_length=64)]
    main: Name
    example: Digest
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class Order(BaseModel):
    """What to do with some jobs; the last three are those of `secateur.targets.measure.measure`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Annotated[list[Job], Field(min_length=1, max_length=64)]
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1
    warmup: Annotated[int, Field(ge=0, le=100_000)] = 0
    min_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0


def digest(data: bytes) -> str:
    """SHA-256, the name of what is sent."""
    return hashlib.sha256(data).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def pack(example: Example) -> bytes:
    """An example as safetensors: its tensors, and how they are nested in the header.

    Raises:
        ArgumentError: something in it is neither a tensor nor a plain value.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.NamedTemporaryFile() as f:
        ...     _ = f.write(pack({"ids": torch.tensor([[1, 2]]), "pair": (1.5, None)})), f.flush()
        ...     unpack(Path(f.name))
        {'ids': tensor([[1, 2]]), 'pair': (1.5, None)}
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_written(example, tensors))
    return bytes(safetensors.torch.save(tensors, {"example": text}))


def _written(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"tensor": key}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_written(v, tensors) for v in value]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _written(v, tensors) for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ArgumentError(
        f"an example for a remote target holds tensors, tuples, lists, dicts and plain values; {type(value).__name__} "
        "cannot be sent"
    )


def unpack(path: Path) -> Example:
    """The example in a file that `pack` made.

    Raises:
        FormatError: it is something else.
    """
    try:
        with safetensors.safe_open(str(path), "pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a mapping)
            found: Example = _read(json.loads((f.metadata() or {})["example"]), tensors)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise FormatError(f"the example that was sent is damaged: {first_line(e)}") from e
    return found


def _read(written: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = written.items()
    if kind == "tensor":
        return tensors[value]
    if kind in ("tuple", "list"):
        items = [_read(v, tensors) for v in value]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {k: _read(v, tensors) for k, v in value.items()}
    if kind == "value":
        return value
    raise ValueError(f"no such kind of value: {kind!r}")


def find_token(file: str | Path | None = None) -> str | None:
    """The token: from a file, else ``SECATEUR_TOKEN``, else the file that ``SECATEUR_TOKEN_FILE`` names, else None.

    Raises:
        ArgumentError: the file cannot be read, or the token is too short or not plain text.
    """
    text = os.environ.get("SECATEUR_TOKEN") if file is None else None
    where = "SECATEUR_TOKEN"
    if not text:
        named = file or os.environ.get("SECATEUR_TOKEN_FILE")
        if not named:
            return None
        where = f"token file {named}"
        try:
            text = Path(named).read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            raise ArgumentError(f"{where} cannot be read: {first_line(e)}") from e
    return checked_token(text.strip(), where)


def checked_token(token: str, where: str = "token") -> str:
    """The token itself.

    Raises:
        ArgumentError: it is short or holds more than visible ASCII; the message does not repeat it.
    """
    if len(token) < SHORTEST or not all("!" <= c <= "~" for c in token):
        raise ArgumentError(
            f"{where}: a token has at least {SHORTEST} visible ASCII characters and no spaces, got {len(token)} "
            "characters: python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return token
