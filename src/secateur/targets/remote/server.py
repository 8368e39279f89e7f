"""The service on a device: takes files, and runs and times them there, one order at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from secateur.errors import TargetError, brief
from secateur.export.prepare import first_line, need
from secateur.targets.memory import machine, present
from secateur.targets.remote.process import COMMAND, Died, Worker
from secateur.targets.remote.protocol import OPS, VERSION, Order, checked_token
from secateur.targets.remote.store import Store, TooLarge, WrongContent

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger("secateur")

IDLE = 30.0
"""Seconds without a byte after which an upload is given up."""


@dataclass(frozen=True)
class Service:
    """What is served, and within which bounds.

    Attributes:
        targets: name -> ``module:name`` of the `Target`, which has ``load``.
        token: what every request must carry.
        max_upload: largest file, bytes; four times that is kept.
        files: most files kept.
        time_limit: seconds that one order may take, and that one may wait for its turn.
        waiting: most orders and uploads that wait; the next is told that the device is busy.
        tls: certificate and key files, or None.
        worker: the command that runs `secateur.targets.remote.worker`.
    """

    targets: Mapping[str, str]
    token: str = field(repr=False)
    max_upload: int = 2_000_000_000
    files: int = 32
    time_limit: float = 300.0
    waiting: int = 8
    tls: tuple[str, str] | None = None
    worker: Sequence[str] = COMMAND

    def __post_init__(self) -> None:
        checked_token(self.token)


class _Refused(Exception):
    """An answer that is no result: its status, and words."""

    def __init__(self, status: int, words: str, **more: Any) -> None:
        super().__init__(words)
        self.status, self.body = status, {"error": words, **more}


@dataclass(eq=False)
class _Running:
    """A service while it runs."""

    service: Service
    store: Store
    worker: Worker
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0

    async def about(self, request: web.Request) -> dict[str, Any]:
        """What is served, and where."""
        s = self.service
        return {
            "secateur": VERSION,
            "targets": sorted(s.targets),
            "machine": machine(),
            "versions": present(s.targets),
            "max_upload": s.max_upload,
            "time_limit": s.time_limit,
        }

    async def put(self, request: web.Request) -> dict[str, Any]:
        """Take a file; its size is looked at first where the client tells it, and while it comes in any case."""
        most = self.service.max_upload
        size = request.content_length
        too_large = f"a file of {size or 'more'} bytes was sent; this device takes {most} (--max-upload)"
        if size is not None and size > most:
            raise _Refused(413, too_large)
        async with self._turn():  # a transfer would disturb what is measured
            try:
                await self.store.take(request.match_info["digest"], _pieces(request))
            except TooLarge:
                raise _Refused(413, too_large) from None
            except WrongContent:
                raise _Refused(400, "the file that came is not the one that its hash names: send it again") from None
            except TimeoutError:
                raise _Refused(408, f"nothing came for {IDLE:g} s: send the file again") from None
            except OSError as e:
                raise _Refused(507, f"the device could not keep the file: {first_line(e)}") from e
        return {"ok": True}

    async def order(self, request: web.Request) -> dict[str, Any] | bytes:
        """Carry out an order."""
        try:
            order = Order.model_validate_json(await request.read())
        except ValidationError as e:
            first = e.errors(include_url=False)[0]
            where = ".".join(str(p) for p in first["loc"])
            raise _Refused(400, f"the order is not valid: {where}: {first['msg']}") from None
        op = request.match_info["op"]
        if op != "measure" and len(order.jobs) != 1:
            raise _Refused(400, f"{op} takes one job, got {len(order.jobs)}")
        for job in order.jobs:
            if job.target not in self.service.targets:
                served = ", ".join(sorted(self.service.targets))
                raise _Refused(404, f"target {job.target!r} is not served here; served are: {served}")
            if job.main not in job.files:
                raise _Refused(400, f"the order is not valid: main: {job.main} is not among its files")
        async with self._turn():
            return await self._carried_out(op, order)

    async def _carried_out(self, op: str, order: Order) -> dict[str, Any] | bytes:
        wanted = {d for job in order.jobs for d in (*job.files.values(), job.example)}
        missing = sorted(d for d in wanted if not self.store.has(d))
        if missing:
            raise _Refused(409, "files of the order are not here (any more): send them again", missing=missing)
        folders = {str(i): job.files for i, job in enumerate(order.jobs)}
        examples = {str(i): job.example for i, job in enumerate(order.jobs)}
        with self.store.laid_out({**folders, "examples": examples}) as top:
            jobs = [
                {
                    "target": self.service.targets[job.target],
                    "path": str(top / str(i) / job.main),
                    "example": str(top / "examples" / str(i)),
                    "threads": job.threads,
                }
                for i, job in enumerate(order.jobs)
            ]
            how = {"repeats": order.repeats, "warmup": order.warmup, "min_seconds": order.min_seconds}
            out = top / "out"
            try:
                found = await self.worker.do(
                    {"op": op, "folder": str(top), "jobs": jobs, "out": str(out), **how}, self.service.time_limit
                )
            except Died as e:
                raise _Refused(500, str(e)) from e
            if "error" in found:
                raise _Refused(400, str(found["error"]))
            return out.read_bytes() if op == "call" else {"ok": found["ok"]}

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One at a time; who comes when too many wait, or waits too long, is told so."""
        if self.turn.locked() and self.waiting >= self.service.waiting:
            raise _Refused(503, f"the device is busy, and {self.waiting} others wait: try later")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.service.time_limit):
                await self.turn.acquire()
        except TimeoutError:
            raise _Refused(503, f"the device was busy for {self.service.time_limit:g} s: try later") from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.turn.release()


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(IDLE):
            chunk = await request.content.read(1 << 18)
        if not chunk:
            return
        yield chunk


def _application(running: _Running) -> web.Application:
    (http,) = need("remote", "aiohttp.web")
    expected = f"Bearer {running.service.token}".encode()

    @http.middleware  # type: ignore[untyped-decorator]
    async def checked(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
        try:
            given = request.headers.get("Authorization", "").encode(errors="replace")
            if not hmac.compare_digest(given, expected):
                raise _Refused(401, "the token is missing or wrong")
            found = await handler(request)
        except _Refused as e:
            return http.json_response(e.body, status=e.status)
        except http.HTTPException as e:
            return http.json_response({"error": e.reason}, status=e.status)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as e:
            log.exception("an order failed")
            return http.json_response({"error": f"the service failed: {brief(e)}"}, status=500)
        return http.Response(body=found) if isinstance(found, bytes) else http.json_response(found)

    app = http.Application(middlewares=[checked], client_max_size=1 << 20)
    routes: list[tuple[str, str, Any]] = [
        ("GET", "/", running.about),
        ("PUT", "/files/{digest:[0-9a-f]{64}}", running.put),
        ("POST", f"/{{op:{'|'.join(OPS)}}}", running.order),
    ]
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    return app  # type: ignore[no-any-return]


async def serve(
    service: Service, host: str, port: int, ready: Callable[[str], None], stopped: asyncio.Event | None = None
) -> None:
    """Serve until cancelled, or until ``stopped`` is set; what was sent goes with it.

    Args:
        service: what, and within which bounds.
        host: address to listen on.
        port: its port; 0 picks one.
        ready: called with ``host:port`` once it listens.
        stopped: ends it.

    Raises:
        TargetError: the ``remote`` extra is missing, the address cannot be listened on, or the certificate not read.
    """
    (web,) = need("remote", "aiohttp.web")
    context = _tls(service.tls)
    store = Store(service.max_upload, service.files)
    running = _Running(service, store, Worker(store.folder / "worker.log", service.worker))
    # A handler is cancelled when its client goes away, and so stops the worker.
    runner = web.AppRunner(
        _application(running), handler_cancellation=True, access_log=None, lingering_time=2.0, shutdown_timeout=1.0
    )
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as e:
            raise TargetError(f"cannot listen on {host}:{port}: {first_line(e)}") from e
        at = runner.addresses[0]
        ready(f"[{at[0]}]:{at[1]}" if ":" in at[0] else f"{at[0]}:{at[1]}")
        await (stopped or asyncio.Event()).wait()
    finally:
        await runner.cleanup()
        await running.worker.stop()
        store.close()


def _tls(files: tuple[str, str] | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(*files)
    except (OSError, ssl.SSLError) as e:
        raise TargetError(f"certificate {files[0]} with key {files[1]} cannot be used: {first_line(e)}") from e
    return context


@contextlib.contextmanager
def serving(service: Service, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in a thread of this process; gives ``host:port``. For tests and trials: timings share the process.

    Raises:
        TargetError: as `serve`.
    """
    begun = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        state["loop"], state["stopped"] = asyncio.get_running_loop(), asyncio.Event()

        def ready(address: str) -> None:
            state["address"] = address
            begun.set()

        await serve(service, host, port, ready, state["stopped"])

    def run() -> None:
        try:
            asyncio.run(main())
        except Exception as e:
            state["error"] = e
        finally:
            begun.set()

    thread = threading.Thread(target=run, name="secateur target serve")
    thread.start()
    begun.wait()
    if "error" in state:
        thread.join()
        raise state["error"]
    try:
        yield state["address"]
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended already
            state["loop"].call_soon_threadsafe(state["stopped"].set)
        thread.join()


def loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone.

    Example:
        >>> loopback("127.0.0.1"), loopback("::1"), loopback("0.0.0.0")
        (True, True, False)
    """
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
