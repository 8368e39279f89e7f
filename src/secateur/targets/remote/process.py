"""The service's hold on its worker: started when needed, killed with all that it started, replaced when it died."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-P", "-m", "secateur.targets.remote.worker")
ORDERS = 100
"""A worker is replaced after so many orders: what a runtime leaks goes with it."""
LONGEST = 1 << 28
"""Bytes of an answer."""
LOOK = 0.5
"""Seconds between looks at whether the worker lives: what it started may hold its pipe open when it is dead."""


class Died(Exception):
    """The worker ended, or had to be ended, before it answered; says how."""


@dataclass(eq=False)
class Worker:
    """A process that answers one order after the other.

    Attributes:
        log: file that takes what it and the runtime print, of one order at a time. command: what is started.
    """

    log: Path
    command: Sequence[str] = COMMAND
    _process: Process | None = None
    _orders: int = field(default=0)

    async def do(self, order: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The answer to an order, within ``limit`` seconds; whoever stops waiting for it stops the worker.

        Raises:
            Died: the worker crashed, or was killed for its time.
        """
        try:
            async with asyncio.timeout(limit):
                line = await self._answer(json.dumps(order).encode() + b"\n")
        except TimeoutError:
            await self.stop()
            raise Died(
                f"no result within {limit:g} s, so it was stopped: ask for fewer repeats, or give the service a longer "
                "--time-limit"
            ) from None
        except (ConnectionError, ValueError):
            line = b""
        except BaseException:
            await self.stop()
            raise
        if not line.endswith(b"\n"):
            raise Died(await self._ending())
        found: dict[str, Any] = json.loads(line)
        return found

    async def _answer(self, line: bytes) -> bytes:
        process = await self._ready()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        await process.stdin.drain()
        answer = asyncio.ensure_future(process.stdout.readline())
        try:
            while process.returncode is None and not answer.done():
                await asyncio.wait({answer}, timeout=LOOK)
            return await asyncio.wait_for(answer, LOOK)
        except TimeoutError:
            return b""
        finally:
            answer.cancel()

    async def _ready(self) -> Process:
        if self._process is not None and (self._process.returncode is not None or self._orders >= ORDERS):
            await self.stop()
        self._orders += 1
        if self._process is not None:
            with contextlib.suppress(OSError):
                os.truncate(self.log, 0)
            return self._process
        env = {k: v for k, v in os.environ.items() if k != "SECATEUR_TOKEN"}
        env["PYTHONPATH"] = os.pathsep.join(p or "." for p in sys.path)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command, stdin=PIPE, stdout=PIPE, stderr=log, env=env, start_new_session=True, limit=LONGEST
            )
        return self._process

    async def _ending(self) -> str:
        """How it ended, with the last line that it printed."""
        process = self._process
        await self.stop()
        code = None if process is None else process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        try:
            lines = self.log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"the runtime's process ended with {how}" + (f": {lines[-1].strip()}" if lines else "")

    async def stop(self) -> None:
        """Kill it and all that it started; if cancelled, it is killed, and the next stop waits for its end."""
        process = self._process
        if process is None:
            return
        self._orders = ORDERS  # no order goes to it any more
        if process.stdin is not None:
            process.stdin.close()
        try:
            await _settled(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._process is process:
            self._process, self._orders = None, 0


async def _settled(process: Process) -> None:
    """A process whose pipe has closed is about to end: its own exit code tells more than ours."""
    if process.stdout is not None and process.stdout.at_eof():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 1.0)
