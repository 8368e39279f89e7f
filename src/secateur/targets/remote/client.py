"""A target on another device: exported here, sent there once, run and timed there."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from torch import nn

from secateur.errors import ArgumentError, TargetError
from secateur.export.prepare import Array, first_line, need
from secateur.targets.files import Folder
from secateur.targets.remote.protocol import VERSION, digest, digest_of, find_token, pack
from secateur.types import Artefact, Device, Elsewhere, Example, Target

log = logging.getLogger("secateur")

CONNECT = 10.0
"""Seconds until a device that does not answer counts as not there."""


def remote(address: str, target: Target, *, token: str | None = None, ca: str | None = None) -> Target:
    """The target on another device, where ``secateur target serve`` runs.

    A model is exported here; its files are sent once, by their content; loading, timing and peak memory are the
    device's, by its clock. Artefacts of one device take turns in one run there, as those of this machine do here.

    Args:
        address: ``host:port``, or ``https://host:port`` where the service has a certificate.
        target: which of the targets there; its ``export`` is used here.
        token: the service's; else ``SECATEUR_TOKEN``, or what stands in the file ``SECATEUR_TOKEN_FILE``.
        ca: file of the certificate to trust; else ``SECATEUR_CA``, or those of the system.

    Raises:
        ArgumentError: the address is not valid, or there is no token.
        TargetError: the target writes no file, or the device is not there, refuses the token or does not serve it.

    Example:
        >>> from secateur.targets.onnxruntime import onnxruntime
        >>> remote("board", onnxruntime)
        Traceback (most recent call last):
        ...
        secateur.errors.ArgumentError: 'board' is not host:port or https://host:port, such as 127.0.0.1:8765
    """
    if target.export is None or target.load is None:
        raise TargetError(f"{target.name} writes no file that could be sent to {address}: use one that does")
    known = token or find_token()
    link = Link(_url(address), known or "", ca or os.environ.get("SECATEUR_CA"))
    if known is None:
        raise ArgumentError(f"{address}: no token: set SECATEUR_TOKEN to the one that 'secateur target serve' told")
    about = link.about(target.name)
    device = Device(about["machine"], tuple(sorted(about["versions"].items())))
    name = f"{target.name}@{address}"
    export = target.export

    def load(path: Path, example: Example, threads: int) -> Artefact:
        beside = [p for p in Path(path).parent.iterdir() if p.name.startswith(f"{Path(path).stem}.") and p.is_file()]
        return _loaded(link, target.name, name, Path(path), beside, example, threads)

    def build(model: nn.Module, example: Example, threads: int) -> Artefact:
        folder = Folder()
        file = export(model, example, folder.path)
        files = list(folder.path.iterdir())
        nested = [p.name for p in files if not p.is_file()]
        if nested:
            raise TargetError(f"{target.name} writes folders ({', '.join(nested)}): only plain files can be sent")
        return _loaded(link, target.name, name, file, files, example, threads, folder)

    # the target's way to time a single layer is of this machine: there, a layer is built like any model
    return replace(target, name=name, build=build, load=load, device=device, layer=None)


def _url(address: str) -> str:
    found = re.fullmatch(r"(https?://)?([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})/?", address)
    if found is None:
        raise ArgumentError(f"{address!r} is not host:port or https://host:port, such as 127.0.0.1:8765")
    return f"{found[1] or 'http://'}{found[2]}:{found[3]}"


@dataclass(frozen=True)
class Link:
    """A way to a device: equal ones are one place, where artefacts can take turns."""

    url: str
    token: str = field(repr=False)
    ca: str | None = None

    def about(self, target: str) -> dict[str, Any]:
        """What the device says of itself; it must serve the target."""
        about: dict[str, Any] = self.said(self.ask("GET", "/", wait=CONNECT))
        if about.get("secateur") != VERSION:
            theirs = about.get("secateur")
            raise TargetError(f"{self.url} speaks version {theirs} of the protocol, this side {VERSION}: update one")
        if target not in about["targets"]:
            raise TargetError(f"{self.url} serves {', '.join(about['targets'])}, not {target}")
        return about

    def ask(self, method: str, path: str, *, data: Any = None, wait: float) -> Any:
        """One request; an answer other than a result is an error.

        Raises:
            TargetError: what the device said, or that it cannot be reached. Missing: it lacks files.
        """
        (requests,) = need("remote", "requests")
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy for a device, and no other credentials than the token
                answer = session.request(
                    method, f"{self.url}{path}", data=data, headers=headers, timeout=(CONNECT, wait),
                    allow_redirects=False, verify=self.ca or True,
                )  # fmt: skip
        except requests.RequestException as e:
            raise TargetError(f"{self.url}{path}: {_words(requests, e, wait)}") from None
        if answer.status_code == 200:
            return answer
        said = _json(answer)
        if answer.status_code == 409 and isinstance(said.get("missing"), list):
            raise Missing(f"{self.url}: {said.get('error')}", said["missing"])
        words = str(said.get("error") or f"answered {answer.status_code}: is 'secateur target serve' running there?")
        if answer.status_code == 401:
            words += ": set SECATEUR_TOKEN to the one that the service told when it started"
        raise TargetError(f"{self.url}: {words}")

    def said(self, answer: Any) -> Any:
        """The JSON of an answer."""
        found = _json(answer)
        if not found:
            raise TargetError(f"{self.url} answered something else than 'secateur target serve' does")
        return found

    def send(self, files: Mapping[str, Path | bytes], limit: float) -> None:
        """Send files by their hashes."""
        for name, what in files.items():
            if isinstance(what, bytes):
                self.ask("PUT", f"/files/{name}", data=what, wait=limit)
            else:
                with what.open("rb") as f:
                    self.ask("PUT", f"/files/{name}", data=f if what.stat().st_size else b"", wait=limit)


class Missing(TargetError):
    """The device has lost files."""

    def __init__(self, words: str, files: Sequence[str]) -> None:
        super().__init__(words)
        self.files = files


def _json(answer: Any) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _words(requests: Any, error: Exception, wait: float) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return f"its certificate is not trusted ({first_line(error)}): name it in SECATEUR_CA"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no answer within {CONNECT:g} s: is the address right, and the device on?"
    if isinstance(error, requests.exceptions.ReadTimeout):
        return f"no result within {wait:g} s"
    text = str(error)
    if "refused" in text or "unreachable" in text or "resolve" in text or "Name or service" in text:
        return (
            f"cannot be reached ({text.rpartition(': ')[2].rstrip(chr(39) + ')')}): is 'secateur target serve' running?"
        )
    return "the connection broke before the result: did the service stop or restart?"


@dataclass(frozen=True, eq=False)
class _Sent:
    """A file on a device, and all that it takes to send it again."""

    link: Link
    target: str
    main: str
    files: Mapping[str, str]
    example: Example
    threads: int
    content: Mapping[str, Path | bytes]
    limit: float
    folder: Folder | None = None


def _loaded(
    link: Link,
    target: str,
    name: str,
    main: Path,
    beside: Sequence[Path],
    example: Example,
    threads: int,
    folder: Folder | None = None,
) -> Artefact:
    """Send a file and what lies beside it, have it loaded once, and give what runs it there."""
    about = link.about(target)
    files = {p.name: digest_of(p) for p in sorted({main, *beside})}
    content: dict[str, Path | bytes] = {files[p.name]: p for p in {main, *beside}}
    for p in {main, *beside}:
        if p.stat().st_size > about["max_upload"]:
            raise TargetError(
                f"{link.url} takes files of up to {about['max_upload']} bytes, {p.name} has {p.stat().st_size}: start "
                "the service there with a larger --max-upload"
            )
    sent = _Sent(link, target, main.name, files, example, threads, content, about["time_limit"], folder)
    found = _order("load", [sent])["ok"]

    def call(other: Example) -> list[Array]:
        data = _order("call", [replace(sent, example=other)])
        arrays = safetensors.numpy.load(data)
        return [arrays[str(i)] for i in range(len(arrays))]

    def peak() -> int | None:
        bytes_at_peak: int | None = _order("peak", [sent])["ok"]
        return bytes_at_peak

    made = Artefact(
        run=lambda: call(example),
        call=call,
        nbytes=found["nbytes"],
        path=str(main),
        target=name,
        threads=threads,
        batch=found["batch"],
        peak=peak if found["peak"] else None,
        load_seconds=found["load_seconds"],
        elsewhere=Elsewhere(link, sent, _timings),
    )
    return replace(made, again=functools.partial(replace, made))  # every measurement loads it anew


def _timings(sent: list[_Sent], repeats: int, warmup: int, min_seconds: float) -> list[list[float]]:
    found = _order("measure", sent, repeats=repeats, warmup=warmup, min_seconds=min_seconds)["ok"]
    if len(found) != len(sent) or not all(np.size(t) >= repeats and np.all(np.isfinite(t)) for t in found):
        raise TargetError(f"{sent[0].link.url} sent timings that are none")
    seconds: list[list[float]] = found
    return seconds


def _order(op: str, sent: Sequence[_Sent], **how: float) -> Any:
    """Have an op carried out, with its files sent first where the device lacks them."""
    link, limit = sent[0].link, sent[0].limit
    jobs: list[dict[str, Any]] = []
    content: dict[str, Path | bytes] = {}
    for s in sent:
        packed = pack(s.example)
        content |= {digest(packed): packed, **s.content}
        jobs.append(
            {"target": s.target, "files": s.files, "main": s.main, "example": digest(packed), "threads": s.threads}
        )
    text = json.dumps({"jobs": jobs, **how})
    wait = 2 * limit + CONNECT  # its turn, and the order itself
    try:
        answer = link.ask("POST", f"/{op}", data=text, wait=wait)
    except Missing as e:
        if op == "measure":
            log.info("%s has lost files (was it restarted?): sending them again", link.url)
        link.send({name: content[name] for name in e.files if name in content}, wait)
        answer = link.ask("POST", f"/{op}", data=text, wait=wait)
    return answer.content if op == "call" else link.said(answer)
