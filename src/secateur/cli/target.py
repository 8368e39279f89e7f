"""``secateur target serve | list``: what runs models here, and serving it to other machines."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import re
import secrets
import signal
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from secateur.cli.options import EXITS, Json, print_json, say
from secateur.errors import ArgumentError

if TYPE_CHECKING:
    from secateur.targets.remote.server import Service
    from secateur.types import Target

target = typer.Typer(name="target", help="The runtimes there are, and serving them.", no_args_is_help=True)

SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "K": 10**3, "M": 10**6, "G": 10**9}


@target.command("list", epilog=EXITS)
def list_(as_json: Json = False) -> None:
    """Say which targets there are, which are installed here, and which extra brings the others."""
    from secateur.run.assemble import targets

    rows = []
    for name, value in sorted(targets().items()):
        lacking = missing(value.extra)
        rows.append({"name": name, "installed": not lacking, "extra": value.extra, "missing": lacking,
                     "remote": value.load is not None})  # fmt: skip
    if as_json:
        print_json(rows)
        return
    table = Table("target", "here", "as target@host:port")
    for row in rows:
        here = "installed" if row["installed"] else f"pip install 'secateur[{row['extra']}]'"
        table.add_row(str(row["name"]), here.replace("[", r"\["), "yes" if row["remote"] else "no: it writes no file")
    Console().print(table)


def missing(extra: str) -> list[str]:
    """Packages of a pip extra of secateur that are not installed here.

    Example:
        >>> missing("")
        []
    """
    if not extra:
        return []
    wanted = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("secateur") or []:
            if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", line):
                wanted.append(re.split(r"[^A-Za-z0-9_.\-]", line)[0])
    return [name for name in wanted if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@target.command(epilog=EXITS)
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks one.")] = 0,
    token_file: Annotated[
        str | None, typer.Option(help="File with the token; else SECATEUR_TOKEN, else one is made and told once.")
    ] = None,
    max_upload: Annotated[str, typer.Option(help="Largest file that is taken, such as 500MB.")] = "2GB",
    targets: Annotated[
        str | None, typer.Option(help="onnxruntime,module:target; without it, all that are installed.")
    ] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that one order may take.")] = 300.0,
    tls_cert: Annotated[str | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Its key, PEM.")] = None,
) -> None:
    """Serve this machine's targets to --target NAME@HOST:PORT elsewhere, until interrupted."""
    from secateur.targets.remote.protocol import find_token
    from secateur.targets.remote.server import Service, loopback

    if (tls_cert is None) != (tls_key is None):
        raise ArgumentError("--tls-cert and --tls-key go together")
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    served = specs(targets)
    token = find_token(token_file)
    if token is None:
        token = secrets.token_urlsafe(32)
        typer.echo(f"SECATEUR_TOKEN={token}")
    if not loopback(host) and tls is None:
        say(
            f"warning: traffic with {host} is not encrypted, the token included: on a network that you do not trust, "
            "listen on 127.0.0.1 behind an ssh tunnel (ssh -L), or give --tls-cert and --tls-key"
        )
    service = Service(served, token, nbytes_of(max_upload), time_limit=time_limit, tls=tls)
    asyncio.run(_serve(service, host, port))


async def _serve(service: Service, host: str, port: int) -> None:
    from secateur.targets.remote.server import serve as run

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await run(service, host, port, lambda at: typer.echo(f"serving {', '.join(service.targets)} on {at}"), stopped)


def specs(text: str | None) -> dict[str, str]:
    """Name -> ``module:name`` of the targets to serve.

    Raises:
        ArgumentError: no such target, it loads no files, or nothing is installed.

    Example:
        >>> specs("onnxruntime")
        {'onnxruntime': 'secateur:onnxruntime'}
    """
    from secateur.run import assemble

    own = assemble.targets()
    if text is None:
        found = {v.name: f"secateur:{k}" for k, v in own.items() if v.load is not None and not missing(v.extra)}
        if not found:
            raise ArgumentError("no target that loads files is installed here: see 'secateur target list'")
        return found
    found = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        if "@" in name:
            raise ArgumentError(f"--targets {name}: a target of another machine is served there, not here")
        value: Target = assemble.target(name, 1)
        if value.load is None:
            raise ArgumentError(f"--targets {name}: it writes no file that could be sent here: it cannot be served")
        public = next((k for k in (name, f"{name}_") if k in own), None)
        found[value.name] = name if public is None else f"secateur:{public}"
    if not found:
        raise ArgumentError("--targets names none")
    return found


def nbytes_of(text: str) -> int:
    """A size such as ``500MB``, in bytes.

    Raises:
        ArgumentError: it is none, or not positive.

    Example:
        >>> nbytes_of("1.5GB"), nbytes_of("20")
        (1500000000, 20)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", text.strip(), re.IGNORECASE)
    unit = "" if found is None else found[2].upper()
    if found is None or unit not in SIZES or float(found[1]) * SIZES[unit] < 1:
        raise ArgumentError(f"--max-upload {text!r} is no size: write it as 500MB or 2GB")
    return int(float(found[1]) * SIZES[unit])
