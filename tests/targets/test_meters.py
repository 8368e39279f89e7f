"""Sources of joules: a powercap tree in a folder, an NVML that is a module of the test, and estimates."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import TargetError
from secateur.targets import meters
from secateur.targets.meters import codecarbon, find_counter, find_meter, nvml, rapl, watts

RANGE = 65_532_610_987


def zone(root: Path, path: str, name: str, now: int, most: int = RANGE) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", now), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def advance(folder: Path, microjoules: int) -> None:
    """Count on as the kernel does."""
    now = int((folder / "energy_uj").read_text()) + microjoules
    (folder / "energy_uj").write_text(f"{now % int((folder / 'max_energy_range_uj').read_text())}\n")


def test_packages_are_summed_and_memory_stands_apart(tmp_path: Path) -> None:
    a, b = zone(tmp_path, "intel-rapl:0", "package-0", 5), zone(tmp_path, "intel-rapl:1", "package-1", 7)
    core, dram = zone(tmp_path, "intel-rapl:0:0", "core", 1), zone(tmp_path, "intel-rapl:0:1", "dram", 2)
    psys = zone(tmp_path, "intel-rapl:2", "psys", 0)
    mirror = zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    meter = rapl(tmp_path)
    assert meter.label == "measured: RAPL package-0, package-1"
    with meter.open() as read:
        before = read()
        for counter, joules in ((a, 3), (b, 4), (core, 100), (dram, 2), (psys, 1000), (mirror, 3)):
            advance(counter, joules * 1_000_000)
        after = read()
    assert list(after) == ["package", "DRAM"]
    assert after["package"] - before["package"] == pytest.approx(7)
    assert after["DRAM"] - before["DRAM"] == pytest.approx(2)


@settings(max_examples=30)
@given(start=st.integers(0, 999), steps=st.lists(st.integers(0, 999), max_size=20))
def test_a_counter_that_begins_again_goes_on(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[int]
) -> None:
    root = tmp_path_factory.mktemp("powercap")
    package = zone(root, "intel-rapl:0", "package-0", start, 1000)
    with rapl(root).open() as read:
        for i, step in enumerate(steps):
            advance(package, step)
            assert read()["package"] == pytest.approx(sum(steps[: i + 1]) * 1e-6)


def test_no_counters_say_where_they_were_looked_for(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "psys", 5)
    with pytest.raises(TargetError, match=f"no package counters in {tmp_path}"):
        rapl(tmp_path)


def test_counters_for_root_alone_say_how_to_open_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    plain = Path.read_text

    def refuse(self: Path, *a: Any, **k: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *a, **k)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(TargetError, match=r"root alone.*sudo chmod a\+r .*/\*/energy_uj"):
        rapl(tmp_path)


def test_a_counter_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0", 5) / "energy_uj").write_text("many\n")
    with pytest.raises(TargetError, match="holds 'many'"):
        rapl(tmp_path)


class FakeNvml(types.ModuleType):
    """A board that has drawn ``millijoules``, and draws ``milliwatts`` now."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool = True, powers: bool = True, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.counts, self.powers, self.driver = counts, powers, driver
        self.millijoules, self.milliwatts, self.open = 0, 50_000, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise self.NVMLError("Invalid Argument")
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return f"handle of {uuid}"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "Board"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if not self.powers:
            raise self.NVMLError("Not Supported")
        return self.milliwatts


def board(monkeypatch: pytest.MonkeyPatch, **how: bool) -> FakeNvml:
    fake = FakeNvml(**how)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_a_board_that_counts_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = board(monkeypatch)
    meter = nvml("GPU-1")
    assert meter.label == "measured: NVML energy counter of Board"
    with meter.open() as read:
        before = read()["GPU"]
        fake.millijoules += 2500
        assert read()["GPU"] - before == pytest.approx(2.5)
    assert fake.open == 0


def test_a_board_without_a_counter_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = board(monkeypatch, counts=False)
    meter = nvml(0, every=0.001)
    assert meter.label == "measured: NVML power sampled every 1 ms of Board"
    with meter.open() as read:
        first, second = read()["GPU"], read()["GPU"]
    assert second > first >= 0
    assert fake.open == 0


def test_sampled_power_is_integrated_by_trapezoids() -> None:
    times, powers = iter([0.0, 1.0, 3.0]), iter([10.0, 20.0, 40.0])
    with meters._integrated(lambda: next(powers), 60.0, lambda: next(times)) as joules:
        assert joules() == pytest.approx(15.0)
        assert joules() == pytest.approx(15.0 + 60.0)


@pytest.mark.parametrize(
    ("how", "device", "words"),
    [
        ({"driver": False}, 0, "NVML Shared Library Not Found"),
        ({}, 3, "no device 3"),
        ({"counts": False, "powers": False}, 0, "neither its energy nor its power"),
    ],
)
def test_a_board_that_cannot_be_read_says_why(
    how: dict[str, bool], device: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = board(monkeypatch, **how)
    with pytest.raises(TargetError, match=words):
        nvml(device)
    assert fake.open == 0


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(TargetError, match=r"secateur\[energy\]"):
        nvml()


@pytest.mark.parametrize("power", [0.0, -1.0, float("inf"), float("nan")])
def test_no_power_is_refused(power: float) -> None:
    with pytest.raises(TargetError, match="positive and finite"):
        watts(power)


def carbon(monkeypatch: pytest.MonkeyPatch, tdp: float, model: str) -> None:
    """A codecarbon whose table gives one power."""
    core, util = types.ModuleType("codecarbon.core.cpu"), types.ModuleType("codecarbon.core.util")
    core.TDP = lambda: types.SimpleNamespace(tdp=tdp, model=model)  # type: ignore[attr-defined]
    core.DEFAULT_POWER_PER_CORE = 4  # type: ignore[attr-defined]
    util.count_cpus = lambda: 8  # type: ignore[attr-defined]
    for name, module in (("codecarbon", types.ModuleType("codecarbon")), (core.__name__, core), (util.__name__, util)):
        monkeypatch.setitem(sys.modules, name, module)


def test_codecarbons_model_is_its_power_times_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    carbon(monkeypatch, 280, "Big")
    ticks = iter([1.0, 3.0])
    meter = codecarbon(lambda: next(ticks))
    assert meter.label == "estimated: codecarbon's 280 W (TDP of Big) times the load of 8 processors"
    with meter.open() as read:
        assert -read()["power"] + read()["power"] == pytest.approx(280 / 8 * 2.0)


def test_codecarbon_for_an_unknown_processor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    carbon(monkeypatch, 32, "Odd")
    assert "4 W a thread, Odd being unknown" in codecarbon().source


def test_a_counter_goes_before_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    assert find_meter("cpu", 15.0, tmp_path).name == "RAPL"
    empty = tmp_path / "none"
    stated = find_meter("cpu", 15.0, empty)
    assert (stated.name, stated.measured) == ("watts", False)
    assert str(empty) in stated.refusal
    carbon(monkeypatch, 280, "Big")
    assert find_meter("cpu", None, empty).name == "codecarbon"
    monkeypatch.setitem(sys.modules, "codecarbon.core.cpu", None)
    with pytest.raises(TargetError, match=r"no source of joules: RAPL.*secateur\[energy\].*--watts"):
        find_meter("cpu", None, empty)


def test_a_cuda_device_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = board(monkeypatch)
    asked: list[str] = []
    monkeypatch.setattr(fake, "nvmlDeviceGetHandleByUUID", lambda uuid: asked.append(uuid) or "handle")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: types.SimpleNamespace(uuid="ab-12"))
    assert find_counter("cuda:0").name == "NVML"
    assert asked == ["GPU-ab-12"]
    fake.counts = fake.powers = False
    with pytest.raises(TargetError, match="codecarbon has no model of this device"):
        find_meter("cuda:0")
