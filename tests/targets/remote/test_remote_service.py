"""The service holds: tokens, sizes, crashes, clients that go away. The worker here is a stub, so all is quick."""

import asyncio
import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import requests
import torch
from stub_worker import BRIEF, CRASH, EXIT, HANG
from torch import nn

from secateur.errors import ArgumentError, TargetError
from secateur.targets.files import file_target
from secateur.targets.measure import measure
from secateur.targets.remote import Service, remote, serving
from secateur.targets.remote.process import Worker
from secateur.targets.remote.protocol import digest, pack

TOKEN = "a-token-of-the-tests"
STUB = Path(__file__).with_name("stub_worker.py")


def export(model, example, folder):
    (folder / "model.bin").write_bytes(b"model")
    return folder / "model.bin"


def load(path, example, threads):
    raise AssertionError("files run on the device, not here")


stub = file_target("stub", export, load)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where the service keeps what it was sent."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def service(log, **settings):
    worker = (sys.executable, "-S", "-E", str(STUB), str(log))
    return Service({"stub": "nowhere:stub"}, TOKEN, worker=worker, **settings)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def address(temporary, log):
    with serving(service(log, max_upload=1000, files=3)) as at:
        yield at


def ask(address, method, path, token=TOKEN, **more):
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return requests.request(method, f"http://{address}{path}", headers=headers, timeout=20, **more)


def put(address, data):
    assert ask(address, "PUT", f"/files/{digest(data)}", data=data).status_code == 200
    return digest(data)


def order(address, repeats=1, op="measure", **job):
    model, example = put(address, b"model"), put(address, pack(torch.ones(1)))
    jobs = [{"target": "stub", "files": {"m.bin": model}, "main": "m.bin", "example": example, **job}]
    return ask(address, "POST", f"/{op}", json={"jobs": jobs, "repeats": repeats})


def kept(temporary):
    return sorted(f.stat().st_size for f in temporary.glob("secateur-*/serve-*/*") if f.name != "worker.log")


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "ünïcode-token-of-tests"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("POST", "/measure"), ("PUT", "/files/" + "0" * 64), ("GET", "/no")]
)
def test_nothing_is_answered_without_the_token(address, temporary, token, method, path):
    token = token if token is None else token.encode("latin1")
    headers = {} if token is None else {"Authorization": b"Bearer " + token}
    data = b"x" * 100 if method != "GET" else None
    answer = requests.request(method, f"http://{address}{path}", headers=headers, data=data, timeout=20)
    assert answer.status_code == 401
    assert kept(temporary) == []
    assert ask(address, "GET", "/").json()["targets"] == ["stub"]


def test_a_file_that_is_too_large_is_refused_and_not_kept(address, temporary):
    data = b"x" * 1001
    answer = ask(address, "PUT", f"/files/{digest(data)}", data=data)
    assert answer.status_code == 413
    assert "1001 bytes" in answer.json()["error"]
    assert ask(address, "PUT", f"/files/{digest(data)}", data=iter([b"x" * 600] * 5)).status_code == 413  # untold size
    assert kept(temporary) == []
    put(address, b"y" * 1000)
    assert kept(temporary) == [1000]


def test_only_the_announced_content_is_kept(address, temporary):
    assert ask(address, "PUT", f"/files/{digest(b'a')}", data=b"b").status_code == 400
    for path in ("/files/../../etc", "/files/abc", "/files/" + "A" * 64, "/files/%2e%2e%2fx"):
        assert ask(address, "PUT", path, data=b"b").status_code == 404
    assert kept(temporary) == []


def test_only_so_many_files_are_kept_and_the_longest_unused_go(address, temporary):
    for size in (1, 2, 3, 4):
        put(address, b"z" * size)
    assert kept(temporary) == [2, 3, 4]
    job = {"target": "stub", "files": {"m": digest(b"z")}, "main": "m", "example": digest(b"zz")}
    answer = ask(address, "POST", "/measure", json={"jobs": [job]})
    assert answer.status_code == 409
    assert answer.json()["missing"] == [digest(b"z")]


@pytest.mark.parametrize(
    "job",
    [
        {"files": {"../up": "0" * 64}},
        {"files": {".hidden": "0" * 64}},
        {"files": {"a/b": "0" * 64}},
        {"files": {}},
        {"main": "other"},
        {"threads": 0},
        {"code": "print()"},
        {"example": "../x"},
    ],
)
def test_an_order_that_is_not_valid_says_where(address, job):
    answer = order(address, **job)
    assert answer.status_code == 400
    assert f"{next(iter(job))}" in answer.json()["error"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"jobs": []}', "[" * 5000])
def test_an_order_that_is_no_order(address, text):
    assert ask(address, "POST", "/measure", data=text).status_code == 400


def test_an_order_of_megabytes_is_not_read(address):
    assert ask(address, "POST", "/measure", data=b" " * (1 << 21)).status_code == 413


def test_a_target_that_is_not_served(address):
    answer = order(address, target="eager")
    assert answer.status_code == 404
    assert "served are: stub" in answer.json()["error"]


def test_what_a_runtime_refuses_is_a_plain_answer(address):
    answer = order(address, op="load", files={"m.bin": put(address, b"refuse")})
    assert (answer.status_code, answer.json()) == (400, {"error": "refused by the runtime"})


def test_a_crash_takes_the_worker_not_the_service(address, temporary):
    for _ in range(2):
        answer = order(address, CRASH)
        assert answer.status_code == 500
        assert "SIGSEGV" in answer.json()["error"]
    assert "exit code 7: the runtime gave up" in order(address, EXIT).json()["error"]
    assert order(address, 3).json() == {"ok": [[0.25] * 3]}
    assert not list(temporary.glob("secateur-*/serve-*/order-*"))


def pids(log):
    for _ in range(200):
        if log.exists() and "hangs" in log.read_text():
            return [int(p) for p in log.read_text().split("hangs", 1)[1].split()[:2]]
        time.sleep(0.05)
    raise AssertionError("the order never began")


def all_gone(processes):
    for _ in range(200):
        if not any(alive(p) for p in processes):
            return True
        time.sleep(0.05)
    return False


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_order_that_takes_too_long_is_stopped_with_all_that_it_started(temporary, log):
    with serving(service(log, time_limit=1.0)) as address:
        answer = order(address, HANG)
        assert answer.status_code == 500
        assert "no result within 1 s" in answer.json()["error"]
        assert all_gone(pids(log))
        assert order(address).status_code == 200


def test_a_client_that_goes_away_stops_its_order(address, log):
    body = json.dumps({"jobs": [{"target": "stub", "files": {"m": put(address, b"model")}, "main": "m",
                                 "example": put(address, b"e")}], "repeats": HANG})  # fmt: skip
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = (
            f"POST /measure HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        raw.sendall((head + body).encode())
        processes = pids(log)
        assert all(alive(p) for p in processes)
    assert all_gone(processes)
    assert order(address).status_code == 200


def test_a_worker_that_is_killed_is_replaced(address, log):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(order(address, HANG)))
    thread.start()
    os.kill(pids(log)[0], 9)
    thread.join()
    assert "SIGKILL" in answers[0].json()["error"]
    assert order(address).status_code == 200


def test_two_clients_take_turns(address, log):
    threads = [threading.Thread(target=order, args=(address, BRIEF)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert log.read_text().split() == ["begins", "ends"] * 4


def test_a_device_that_stays_busy_says_so(temporary, log):
    with serving(service(log, time_limit=1.5, waiting=0)) as address:
        put(address, b"model"), put(address, pack(torch.ones(1)))
        first = threading.Thread(target=order, args=(address, HANG))
        first.start()
        pids(log)
        data = b"late"
        answer = ask(address, "PUT", f"/files/{digest(data)}", data=data)
        assert answer.status_code == 503
        assert "busy" in answer.json()["error"]
        first.join()


def test_what_was_sent_goes_with_the_service(temporary, log):
    with serving(service(log)) as address:
        assert order(address).status_code == 200
        assert kept(temporary)
    assert not list(temporary.glob("secateur-*/serve-*"))


def test_an_upload_that_breaks_off_leaves_nothing(address, temporary):
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = (
            f"PUT /files/{'0' * 64} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 900\r\n\r\n"
        )
        raw.sendall(head.encode() + b"x" * 500)
    put(address, b"next")  # waits its turn
    assert kept(temporary) == [4]


def built(address, token=TOKEN):
    return remote(address, stub, token=token)


def test_the_client_says_what_happened_and_goes_on_after_a_restart(temporary, log):
    with serving(service(log)) as address:
        artefact = built(address).build(nn.Identity(), torch.ones(1), 1)
        assert measure([artefact], 4, min_seconds=0)[0].seconds.tolist() == [0.25] * 4
    with pytest.raises(TargetError, match=r"cannot be reached .*refused.* is 'secateur target serve' running"):
        measure([artefact], 4, min_seconds=0)
    with serving(service(log), port=int(address.split(":")[1])):
        assert measure([artefact], 4, min_seconds=0)[0].seconds.tolist() == [0.25] * 4  # its files are sent again


def test_a_file_is_sent_once(address, monkeypatch):
    sent = []
    real = requests.Session.request

    def spy(self, method, url, **more):
        sent.append((method, url.rpartition("/")[2]))
        return real(self, method, url, **more)

    monkeypatch.setattr(requests.Session, "request", spy)
    target = built(address)
    for _ in range(2):
        measure([target.build(nn.Identity(), torch.ones(1), 1)], 1, min_seconds=0)
    puts = [name for method, name in sent if method == "PUT"]
    assert sorted(puts) == sorted([hashlib.sha256(b"model").hexdigest(), digest(pack(torch.ones(1)))])


def test_a_service_that_stops_during_a_measurement(temporary, log, monkeypatch):
    errors = []
    with serving(service(log)) as address:
        artefact = built(address).build(nn.Identity(), torch.ones(1), 1)

        def hang():
            try:
                measure([artefact], HANG, min_seconds=0)
            except TargetError as e:
                errors.append(str(e))

        thread = threading.Thread(target=hang)
        thread.start()
        processes = pids(log)
    thread.join()
    assert all_gone(processes)
    assert "the connection broke" in errors[0]


def test_errors_of_the_client_are_clear(address, tmp_path, monkeypatch):
    with pytest.raises(TargetError, match="token is missing or wrong: set SECATEUR_TOKEN") as e:
        built(address, "another-token-altogether")
    assert "another-token" not in str(e.value)
    monkeypatch.delenv("SECATEUR_TOKEN", raising=False)
    monkeypatch.delenv("SECATEUR_TOKEN_FILE", raising=False)
    with pytest.raises(ArgumentError, match="no token: set SECATEUR_TOKEN"):
        built(address, None)
    with pytest.raises(TargetError, match="serves stub, not other"):
        remote(address, file_target("other", export, load), token=TOKEN)
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("SECATEUR_TOKEN_FILE", str(tmp_path / "token"))
    target = built(address, None)
    assert target.name == f"stub@{address}"
    assert target.runtime == "stub"
    assert TOKEN not in repr(target)

    def large(model, example, folder):
        (folder / "model.bin").write_bytes(b"x" * 1001)
        return folder / "model.bin"

    with pytest.raises(TargetError, match="up to 1000 bytes, model.bin has 1001"):
        remote(address, file_target("stub", large, load)).build(nn.Identity(), torch.ones(1), 1)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":80", "user:pw@host:80", "http://h:1/path", "h:123456", "ftp://h:1"]
)
def test_addresses_that_are_none(text):
    with pytest.raises(ArgumentError, match="is not host:port"):
        remote(text, stub, token=TOKEN)


def test_a_service_without_a_proper_token_does_not_start():
    for token in ("", "short", "with spaces in all of it"):
        with pytest.raises(ArgumentError, match="at least 16 visible"):
            Service({}, token)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_with_a_certificate_the_traffic_is_encrypted(temporary, log, tmp_path):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=device"
    subprocess.run(
        [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    with serving(service(log, tls=(certificate, key))) as address:
        artefact = remote(f"https://{address}", stub, token=TOKEN, ca=certificate).build(
            nn.Identity(), torch.ones(1), 1
        )
        assert artefact.load_seconds == 0.5
        with pytest.raises(TargetError, match="certificate is not trusted"):
            remote(f"https://{address}", stub, token=TOKEN)
        with pytest.raises(TargetError):
            remote(address, stub, token=TOKEN)


CLONE_NEWNET = 0x40000000


def own_namespace():
    """Put this thread into a network of its own; threads and processes that it starts are there too."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    return Path("/proc/thread-self/ns/net").readlink()


def ip(words):
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


class Cable:
    """A service in one network and a client in another, each a thread, joined by a virtual cable."""

    def __init__(self, settings):
        self.settings, self.found, self.error = settings, {}, None
        self.there, self.laid, self.ready, self.done = (threading.Event() for _ in range(4))

    def run(self):
        threads = [threading.Thread(target=self.guarded, args=(part,)) for part in (self.device, self.client)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if self.error is not None:
            raise self.error
        return self.found

    def guarded(self, part):
        try:
            part()
        except BaseException as e:
            self.error = self.error or e
        finally:
            for event in (self.there, self.laid, self.ready, self.done):
                event.set()

    def device(self):
        self.found["device"] = own_namespace()
        self.found["thread"] = threading.get_native_id()
        self.there.set()
        self.laid.wait(20)
        ip("addr add 192.0.2.1/24 dev cable0")
        ip("link set cable0 up")
        with serving(self.settings, "192.0.2.1") as self.found["address"]:
            self.ready.set()
            self.done.wait(20)

    def client(self):
        self.found["client"] = own_namespace()
        self.there.wait(20)
        ip(f"link add cable1 type veth peer name cable0 netns {self.found['thread']}")
        ip("addr add 192.0.2.2/24 dev cable1")
        ip("link set cable1 up")
        self.laid.set()
        self.ready.wait(20)
        artefact = built(self.found["address"]).build(nn.Identity(), torch.ones(1), 1)
        self.found["seconds"] = measure([artefact], 3, min_seconds=0)[0].seconds.tolist()


def test_between_two_network_namespaces(temporary, log):
    try:
        found = Cable(service(log)).run()
    except (OSError, subprocess.CalledProcessError) as e:
        why = f"{e} {getattr(e, 'stderr', '')}"
        if isinstance(e, (PermissionError, FileNotFoundError)) or "not permitted" in why or "Unknown device" in why:
            pytest.skip(f"NOT TESTED between two network namespaces, which this machine does not permit: {why}")
        raise
    here = Path("/proc/thread-self/ns/net").readlink()
    assert len({here, found["device"], found["client"]}) == 3
    assert found["address"].startswith("192.0.2.1:")
    assert found["seconds"] == [0.25] * 3


def test_a_stop_that_is_cancelled_leaves_no_process(tmp_path):
    """The worker has closed its pipe and lingers: whoever stops it waits a second for its end, and is cancelled."""
    lingers = "import os, time; os.close(1); time.sleep(600)"

    async def run() -> int:
        worker = Worker(tmp_path / "log", (sys.executable, "-S", "-E", "-c", lingers))
        process = await worker._ready()
        assert await process.stdout.read() == b""
        first = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(worker.stop(), 5)
        return process.returncode

    assert asyncio.run(run()) == -signal.SIGKILL
