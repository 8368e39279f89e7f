"""Files that were sent, by content: so many, so large, in a temporary folder that goes with the service."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secateur.scratch import scratch


class TooLarge(Exception):
    """More was sent than is taken."""


class WrongContent(Exception):
    """What was sent is not what its hash says."""


@dataclass(eq=False)
class Store:
    """At most ``files`` files of at most ``largest`` bytes, four times that together; the longest unused go first.

    Names on disk are hashes that this process computed; no text of a client is ever a path.
    """

    largest: int
    files: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="serve-", dir=scratch())))
    _sizes: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def has(self, digest: str) -> bool:
        """Whether it is here; one that is asked for counts as used."""
        if digest not in self._sizes:
            return False
        self._sizes.move_to_end(digest)
        return True

    async def take(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Write what comes to disk, piece by piece; all of it or nothing stays.

        Raises:
            TooLarge: it is longer than is taken. WrongContent: its hash is another. OSError: the disk is full.
        """
        number, name = tempfile.mkstemp(dir=self.folder, prefix="part-")
        try:
            seen, size = hashlib.sha256(), 0
            with os.fdopen(number, "wb") as f:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self.largest:
                        raise TooLarge
                    seen.update(chunk)
                    f.write(chunk)
            if seen.hexdigest() != digest:
                raise WrongContent
            Path(name).chmod(0o400)  # orders see it by links: none may change it for the next
            Path(name).replace(self.folder / seen.hexdigest())
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
        self._sizes.pop(digest, None)
        self._sizes[digest] = size
        while len(self._sizes) > self.files or sum(self._sizes.values()) > 4 * self.largest:
            gone, _ = self._sizes.popitem(last=False)
            (self.folder / gone).unlink(missing_ok=True)

    @contextlib.contextmanager
    def laid_out(self, folders: Mapping[str, Mapping[str, str]]) -> Iterator[Path]:
        """A fresh folder with folders in it, in which files stand under plain names: links, which outlive an eviction.

        Args:
            folders: folder -> name -> hash; names are plain, as `protocol.Name` has checked.
        """
        top = Path(tempfile.mkdtemp(dir=self.folder, prefix="order-"))
        try:
            for inner, files in folders.items():
                (top / inner).mkdir()
                for name, digest in files.items():
                    os.link(self.folder / digest, top / inner / name)
            yield top
        finally:
            shutil.rmtree(top, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
