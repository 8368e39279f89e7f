"""Where joules come from: the platform's counters, or an estimate that says so."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from secateur.errors import TargetError
from secateur.export.prepare import first_line, need

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the RAPL counters, of Intel's processors and AMD's alike."""

Reading = Mapping[str, float]
"""Joules since an arbitrary start, by part; the first part is the headline, the others stand beside it."""


@dataclass(frozen=True, eq=False)
class Meter:
    """A source of joules.

    Attributes:
        name: ``RAPL``, ``NVML``, ``watts`` or ``codecarbon``. measured: a counter is read; else it is an estimate.
        source: what exactly is read or assumed, as it stands in reports.
        window: seconds that a block of runs must last at least, so that the counter's steps do not show.
        open: a context that gives the function to read it with.
        why: of an estimate: which counters were looked for, and how to make one readable.
    """

    name: str
    measured: bool
    source: str
    window: float
    open: Callable[[], AbstractContextManager[Callable[[], Reading]]]
    why: str = ""

    @property
    def label(self) -> str:
        """``measured`` or ``estimated``, and by what."""
        return f"{'measured' if self.measured else 'estimated'}: {self.source}"

    @property
    def refusal(self) -> str:
        """Why an estimate cannot be a budget."""
        return (
            f"energy cannot be a budget here: it is only estimated ({self.source}), and nothing would hold the result "
            f"to it. {self.why or 'Give energy() a meter that reads a counter'}. Or set a budget on latency"
        )


def rapl(root: Path | str = POWERCAP) -> Meter:
    """The processor's own counters: the sum over its packages, and the memory's beside it where there is one.

    Each package counts microjoules up to ``max_energy_range_uj`` and begins again; that is followed as long as it is
    read once a round (some minutes). Gross: everything that the packages drew, idle and other processes included.

    Args:
        root: the powercap folder.

    Raises:
        TargetError: there are no such counters, or they may not be read; says what to do.

    Example:
        >>> rapl("/nowhere")
        Traceback (most recent call last):
        secateur.errors.TargetError: RAPL: ...
    """
    zones = _zones(Path(root))
    packages = [z for z, name in zones if name.startswith("package")]
    memory = [z for z, name in zones if name == "dram"]
    if not packages:
        raise TargetError(f"RAPL: no package counters in {root} (virtual machines seldom have them): run on the metal")
    for zone in (*packages, *memory):
        _microjoules(zone)
    names = ", ".join(name for zone, name in zones if zone in packages)

    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[], Reading]]:
        parts = {"package": [_Wrapping.of(z) for z in packages], "DRAM": [_Wrapping.of(z) for z in memory]}
        yield lambda: {part: sum(c() for c in counters) for part, counters in parts.items() if counters}

    return Meter("RAPL", True, f"RAPL {names}", 0.2, opened)


def _zones(root: Path) -> list[tuple[Path, str]]:
    """Counters and their names, of one interface: the same packages may be shown by a second one."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for zone in sorted(root.glob("*rapl*:*")):
        if (zone / "energy_uj").exists():
            found.setdefault(zone.name.partition(":")[0], []).append((zone, _text(zone / "name")))
    full = {k: v for k, v in found.items() if any(name.startswith("package") for _, name in v)}
    return full.get("intel-rapl") or next(iter(full.values()), [])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as e:
        raise TargetError(
            f"RAPL: {path} may be read by root alone: run as root, or, until the next boot, "
            f"`sudo chmod a+r {path.parent.parent}/*/energy_uj`"
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise TargetError(f"RAPL: {path} cannot be read: {first_line(e)}") from e


def _microjoules(zone: Path, file: str = "energy_uj") -> int:
    text = _text(zone / file)
    if not text.isdecimal():
        raise TargetError(f"RAPL: {zone / file} holds {text!r}, expected a whole number of microjoules")
    return int(text)


@dataclass(eq=False)
class _Wrapping:
    """A counter that begins again at the end of its range, as one that does not."""

    zone: Path
    range: int
    last: int
    total: int = 0

    @classmethod
    def of(cls, zone: Path) -> _Wrapping:
        return cls(zone, _microjoules(zone, "max_energy_range_uj"), _microjoules(zone))

    def __call__(self) -> float:
        now = _microjoules(self.zone)
        self.total += now - self.last + (self.range if now < self.last else 0)
        self.last = now
        return self.total * 1e-6


def nvml(device: int | str = 0, every: float = 0.02) -> Meter:
    """An NVIDIA GPU's own counter; where it has none, its power, sampled and integrated by trapezoids.

    Gross, and of the board alone: the processor is not in it.

    Args:
        device: NVML's index, or a UUID such as ``"GPU-..."``.
        every: seconds between samples of power.

    Raises:
        TargetError: nvidia-ml-py or the driver is missing, or no such device.
    """
    (pynvml,) = need("energy", "pynvml")
    with _device(pynvml, device) as handle:
        name = str(pynvml.nvmlDeviceGetName(handle))
        counts = _try(pynvml, pynvml.nvmlDeviceGetTotalEnergyConsumption, handle) is not None
        if not counts and _try(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle) is None:
            raise TargetError(f"NVML: {name} tells neither its energy nor its power")

    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[], Reading]]:
        with _device(pynvml, device) as handle:
            if counts:
                yield lambda: {"GPU": pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3}
                return
            with _integrated(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) * 1e-3, every) as joules:
                yield lambda: {"GPU": joules()}

    how = "energy counter" if counts else f"power sampled every {every * 1e3:g} ms"
    return Meter("NVML", True, f"NVML {how} of {name}", 2.0, opened)


@contextlib.contextmanager
def _device(pynvml: Any, device: int | str) -> Iterator[Any]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        raise TargetError(f"NVML: {e}: the NVIDIA driver's library must be there") from e
    try:
        by = pynvml.nvmlDeviceGetHandleByUUID if isinstance(device, str) else pynvml.nvmlDeviceGetHandleByIndex
        try:
            handle = by(device)
        except pynvml.NVMLError as e:
            raise TargetError(f"NVML: no device {device!r}: {e}") from e
        yield handle
    finally:
        pynvml.nvmlShutdown()


def _try(pynvml: Any, function: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return function(handle)
    except pynvml.NVMLError:
        return None


@contextlib.contextmanager
def _integrated(
    power: Callable[[], float], every: float, clock: Callable[[], float] = perf_counter
) -> Iterator[Callable[[], float]]:
    """Joules of a power in watts, sampled by a thread and at each reading."""
    lock, stop = threading.Lock(), threading.Event()
    last, total = (clock(), power()), 0.0

    def sample() -> float:
        nonlocal last, total
        with lock:
            now = clock(), power()
            total += (now[0] - last[0]) * (now[1] + last[1]) / 2
            last = now
            return total

    def keep_on() -> None:
        while not stop.wait(every):
            with contextlib.suppress(Exception):  # a reading that fails in the reader's own thread is raised there
                sample()

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    try:
        yield sample
    finally:
        stop.set()
        thread.join()


def watts(power: float, clock: Callable[[], float] = perf_counter) -> Meter:
    r"""An estimate from a power that the user states: $E = P\,t$.

    Args:
        power: watts drawn while the model runs, such as a reading of a wall-plug meter or a board's rating.
        clock: seconds.

    Raises:
        TargetError: the power is not positive and finite.

    Example:
        >>> ticks = iter([0.0, 2.0])
        >>> with watts(15, lambda: next(ticks)).open() as read:
        ...     before = read()["power"]
        ...     read()["power"] - before
        30.0
    """
    if not 0 < power < float("inf"):
        raise TargetError(f"watts must be positive and finite, got {power!r}")
    return _proportional("watts", f"{power:g} W as stated, times seconds", power, clock)


def codecarbon(clock: Callable[[], float] = process_time) -> Meter:
    r"""An estimate by codecarbon's model of a process: its table's thermal design power, times the load.

    $E = \mathrm{TDP} \cdot t_{cpu} / n$ with $t_{cpu}$ the process's processor seconds over all threads and $n$ the
    machine's logical processors. A virtual machine that shows a part of its processor is overestimated: state
    `watts` there.

    Source: codecarbon, https://docs.codecarbon.io, tracking mode "process".

    Raises:
        TargetError: codecarbon is not installed, or has no figure for this processor.
    """
    core, util = need("energy", "codecarbon.core.cpu", "codecarbon.core.util")
    logger = logging.getLogger("codecarbon")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it would warn of stands in the source below
    try:
        found, count = core.TDP(), max(1, int(util.count_cpus()))
    finally:
        logger.setLevel(level)
    if not found.tdp:
        raise TargetError("codecarbon has no power for this processor: state watts")
    power = float(found.tdp)
    known = power != count * core.DEFAULT_POWER_PER_CORE
    how = f"TDP of {found.model}" if known else f"{core.DEFAULT_POWER_PER_CORE} W a thread, {found.model} being unknown"
    source = f"codecarbon's {power:g} W ({how}) times the load of {count} processors"
    return _proportional("codecarbon", source, power / count, clock)


def _proportional(name: str, source: str, power: float, clock: Callable[[], float]) -> Meter:
    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[], Reading]]:
        yield lambda: {"power": power * clock()}

    return Meter(name, False, source, 0.05, opened)


def find_counter(device: torch.device | str = "cpu", root: Path | str = POWERCAP) -> Meter:
    """The counter that measures a device: `nvml` of a CUDA device, else `rapl`.

    Raises:
        TargetError: it is not there, or may not be read; says what to do.
    """
    device = torch.device(device)
    return nvml(_uuid(device)) if device.type == "cuda" else rapl(root)


def find_meter(device: torch.device | str = "cpu", power: float | None = None, root: Path | str = POWERCAP) -> Meter:
    """The best source of joules for a device: its counter, else the power stated, else codecarbon's model.

    Args:
        device: where the model runs.
        power: watts drawn while it runs, for where no counter can be read.
        root: the powercap folder.

    Raises:
        TargetError: there is none; says what was looked for and what to do about each.
    """
    try:
        return find_counter(device, root)
    except TargetError as e:
        tried = str(e)
    try:
        if power is None and torch.device(device).type == "cuda":
            raise TargetError("codecarbon has no model of this device")
        made = codecarbon() if power is None else watts(power)
    except TargetError as e:
        raise TargetError(f"no source of joules: {tried}; {e}. Or state the power drawn: --watts 15, watts=15") from e
    return replace(made, why=f"Looked for: {tried}")


def _uuid(device: torch.device) -> str:
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


if __name__ == "__main__":
    for way in (rapl, nvml, lambda: watts(15), codecarbon):
        try:
            print(way().label)
        except TargetError as error:
            print("not here:", error)
