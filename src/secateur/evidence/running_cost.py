"""What running a model costs: joules, CO2 and money, each labelled with where it comes from."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.errors import ArgumentError, TargetError
from secateur.targets.energy import Energy, measure_energy
from secateur.targets.meters import Meter, find_meter
from secateur.types import Artefact, Measurement, Row

KWH = 3.6e6
"""Joules in a kilowatt-hour."""
MILLION = 1_000_000


@dataclass(frozen=True)
class Grid:
    """How much CO2 a kilowatt-hour of a country's electricity stands for.

    Attributes:
        code: ISO 3166-1 alpha-3. name: of the country. grams: g of CO2 equivalent a kWh. year: of the figure.
        source: who says so.
    """

    code: str
    name: str
    grams: float
    year: int
    source: str = "codecarbon"


def grid(country: str, table: Path | str | None = None) -> Grid:
    """The electricity of a country in codecarbon's table, read offline.

    Args:
        country: ISO 3166-1 alpha-3 code, such as ``FRA``.
        table: ``global_energy_mix.json``; that of the installed codecarbon unless given.

    Raises:
        ArgumentError: no such country. TargetError: codecarbon is not installed.
    """
    file, source = (Path(table), "") if table is not None else _table()
    countries = {
        k: v
        for k, v in json.loads(file.read_text(encoding="utf-8")).items()
        if isinstance(v.get("carbon_intensity"), (int, float))
    }
    code = country.strip().upper()
    if code not in countries:
        near = [c for c in sorted(countries) if code and c.startswith(code[:2])] or sorted(countries)
        raise ArgumentError(
            f"country {country!r} is not in the table of {len(countries)}: write an ISO code of three letters, such as "
            f"{', '.join(near[:3])}"
        )
    found = countries[code]
    grams, year = float(found["carbon_intensity"]), int(found.get("year", 0))
    return Grid(code, str(found.get("country_name", code)), grams, year, source or file.name)


def _table() -> tuple[Path, str]:
    """The file of the installed codecarbon; the package itself, with all that it needs, is not imported."""
    try:
        installed = importlib.metadata.distribution("codecarbon")
    except importlib.metadata.PackageNotFoundError as e:
        raise TargetError("codecarbon is needed for CO2 and is not installed: pip install 'secateur[energy]'") from e
    file = Path(str(installed.locate_file("codecarbon/data/private_infra/global_energy_mix.json")))
    if not file.is_file():
        raise TargetError(f"codecarbon {installed.version} has no table at {file}: pip install 'secateur[energy]'")
    return file, f"codecarbon {installed.version}"


def co2_per_million(joules: float, batch: int, grams_per_kwh: float) -> float:
    r"""Grams of CO2 equivalent for a million inferences.

    $m = 10^6 \cdot \frac{E}{B} \cdot \frac{I}{3.6 \cdot 10^6}$ with $E$ joules a run, $B$ items a run, $I$ grams a kWh.

    Example:
        >>> round(co2_per_million(3.6, 1, 100.0), 9)
        100.0
    """
    return MILLION * joules / batch / KWH * grams_per_kwh


def cost_per_million(
    seconds: float, joules: float, batch: int, price_per_hour: float = 0.0, price_per_kwh: float = 0.0
) -> float:
    r"""The price of a million inferences one after the other, in the currency of the prices given.

    $c = \frac{10^6}{B} \left( \frac{t}{3600} p_h + \frac{E}{3.6 \cdot 10^6} p_{kWh} \right)$ with $t$ seconds and $E$
    joules a run, $B$ items a run, $p_h$ the price of the machine an hour, $p_{kWh}$ that of electricity.

    Example:
        >>> round(cost_per_million(0.0036, 0.0, 1, price_per_hour=0.10), 9)
        0.1
        >>> round(cost_per_million(1.0, 3.6, 2, price_per_kwh=0.25), 9)
        0.125
    """
    return MILLION / batch * (seconds / 3600 * price_per_hour + joules / KWH * price_per_kwh)


@dataclass(frozen=True, eq=False)
class Running:
    """What a report is to say about running the model.

    Attributes:
        meter: where joules come from, or None where only the machine's price is asked for.
        grid: of the electricity, for CO2, or None.
        price_per_hour: of the machine, or None. price_per_kwh: of electricity, or None.
    """

    meter: Meter | None = None
    grid: Grid | None = None
    price_per_hour: float | None = None
    price_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in ("price_per_hour", "price_per_kwh"):
            price = getattr(self, name)
            if price is not None and not (price >= 0 and math.isfinite(price)):
                raise ArgumentError(f"{name} must be at least 0 and finite, got {price!r}")
        if self.meter is None and (self.grid is not None or self.price_per_kwh is not None):
            raise ArgumentError("CO2 and the price of electricity need joules: give a meter")

    @property
    def terms(self) -> str:
        """The prices in words."""
        prices = ((self.price_per_hour, "an hour"), (self.price_per_kwh, "a kWh"))
        return ", ".join(f"{price:g} {of}" for price, of in prices if price is not None)


def running(
    device: torch.device | str = "cpu",
    energy: bool = False,
    watts: float | None = None,
    country: str | None = None,
    price_per_hour: float | None = None,
    price_per_kwh: float | None = None,
) -> Running | None:
    """What was asked for, its meter found and its table read; None where nothing was.

    Args:
        device: where the model runs.
        energy: whether joules are wanted.
        watts: the power drawn, for where no counter can be read.
        country: ISO code of three letters, for CO2.
        price_per_hour: of the machine.
        price_per_kwh: of electricity.

    Raises:
        ArgumentError: no such country, or a price below 0. TargetError: there is no source of joules.

    Example:
        >>> running(price_per_hour=0.1).price_per_hour, running() is None
        (0.1, True)
    """
    metered = energy or watts is not None or country is not None or price_per_kwh is not None
    if not metered and price_per_hour is None:
        return None
    place = None if country is None else grid(country)
    return Running(find_meter(device, watts) if metered else None, place, price_per_hour, price_per_kwh)


def running_rows(
    asked: Running,
    artefacts: Sequence[Artefact],
    timings: Sequence[Measurement],
    label: str,
    limit: float | None = None,
    fraction: float | None = None,
    tolerance: float = 0.0,
) -> list[Row]:
    """The rows of a report: energy a run, CO2 and the price of a million inferences, dense beside pruned.

    Args:
        asked: what the report is to say.
        artefacts: dense and pruned.
        timings: of each.
        label: where they run.
        limit: joules that the pruned one was to meet. fraction: of the dense one's, instead.
        tolerance: by which a measured figure may exceed it.

    Raises:
        TargetError: as `measure_energy`.
    """
    rows: list[Row] = []
    spread = [0.0]
    joules, batch, basis = [0.0, 0.0], artefacts[0].batch, ""
    if asked.meter is not None:
        pair = measure_energy(artefacts, asked.meter)
        spread = [e.spread for e in pair]
        joules, basis = [e.median for e in pair], "measured" if asked.meter.measured else "estimated"
        wanted = limit if fraction is None else fraction * joules[0]
        ok = None if wanted is None else joules[1] <= (1 + tolerance) * wanted
        rows.append(Row(f"energy a run, {label}", "J", joules[0], joules[1], wanted, ok, note=energy_note(pair)))
        for part in pair[0].apart:
            both = [float(np.median(e.apart[part])) for e in pair]
            rows.append(
                Row(f"energy a run of {part}, {label}", "J", both[0], both[1], note=f"{basis}, beside the above")
            )
    if asked.grid is not None:
        g = asked.grid
        both = [co2_per_million(j, batch, g.grams) for j in joules]
        note = f"estimated: energy {basis}, {g.grams:g} g a kWh in {g.name} ({g.year}, {g.source})"
        note += _noise(both, spread)
        rows.append(Row(f"CO2 of a million inferences, {label}", "g", both[0], both[1], note=note))
    if asked.terms:
        rows.append(_price_row(asked, timings, joules, batch, label, spread, basis))
    return rows


def _price_row(
    asked: Running,
    timings: Sequence[Measurement],
    joules: Sequence[float],
    batch: int,
    label: str,
    spread: Sequence[float],
    basis: str,
) -> Row:
    hour, kwh = asked.price_per_hour, asked.price_per_kwh
    both = [cost_per_million(t.median, j, batch, hour or 0.0, kwh or 0.0) for t, j in zip(timings, joules, strict=True)]
    noise = [*(spread if kwh is not None else ()), *(t.spread for t in timings if hour is not None)]
    note = f"at {asked.terms}" + (f", energy {basis}" if kwh is not None else "") + _noise(both, noise)
    return Row(f"price of a million inferences, {label}", "", both[0], both[1], note=note)


def energy_note(found: Sequence[Energy]) -> str:
    """Where joules come from, how far they spread, and whether a difference is within that."""
    spread = [e.spread for e in found]
    words = [found[0].meter.label, "gross", f"spread {max(spread):.1%}", *(e.note for e in found if e.note)]
    return "; ".join(dict.fromkeys(words)) + _noise([e.median for e in found], spread)


def _noise(both: Sequence[float], spread: Sequence[float]) -> str:
    lost = len(both) > 1 and both[0] > 0 and abs(both[-1] / both[0] - 1) <= max(spread)
    return "; within noise" if lost else ""


def running_facts(
    asked: Running, artefacts: Sequence[Artefact], timings: Sequence[Measurement]
) -> list[dict[str, Any]]:
    """What running each artefact costs, as plain data."""
    found = None if asked.meter is None else measure_energy(artefacts, asked.meter)
    facts: list[dict[str, Any]] = []
    for i, artefact in enumerate(artefacts):
        told: dict[str, Any] = {}
        joules = 0.0 if found is None else found[i].median
        if found is not None:
            e = found[i]
            told |= {
                "energy_j": joules,
                "energy_spread": e.spread,
                "energy_source": e.meter.label,
                "energy_note": e.note,
            }
        if asked.grid is not None:
            told |= {"co2_g_per_million": co2_per_million(joules, artefact.batch, asked.grid.grams)}
            told |= {"co2_source": f"{asked.grid.name}, {asked.grid.year}, {asked.grid.source}"}
        if asked.terms:
            prices = asked.price_per_hour or 0.0, asked.price_per_kwh or 0.0
            told |= {"price_per_million": cost_per_million(timings[i].median, joules, artefact.batch, *prices)}
        facts.append(told)
    return facts


if __name__ == "__main__":
    for code in ("FRA", "DEU", "USA"):
        place = grid(code)
        mass = co2_per_million(2e-3, 1, place.grams)
        print(f"{place.name}: {place.grams:g} g a kWh ({place.year}); at 2 mJ a run {mass:.3g} g a million")
