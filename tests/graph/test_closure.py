"""Components and closures against exhaustive search over all sets of removable ids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import attention_nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.graph.axes import Axes
from secateur.graph.closure import Solution, components, solve
from secateur.graph.counting import Counter
from secateur.graph.recorded import Graph, Value


@dataclass
class System:
    """Constraints over few enough ids to try every subset."""

    n: int
    ties: list[tuple[int, int]] = field(default_factory=list)
    pins: list[int] = field(default_factory=list)
    cells: list[tuple[int, int, int]] = field(default_factory=list)

    def feasible(self) -> set[frozenset[int]]:
        """Every set of ids that may be removed together."""
        found = set()
        for bits in itertools.product((False, True), repeat=self.n):
            if (
                all(bits[a] == bits[b] for a, b in self.ties)
                and not any(bits[p] for p in self.pins)
                and all(bits[x] == (bits[y] or bits[z]) for x, y, z in self.cells)
            ):
                found.add(frozenset(i for i, bit in enumerate(bits) if bit))
        return found - {frozenset()}

    def circular(self) -> bool:
        """Whether some cell takes part in its own definition, through ties: smaller sets may then be missed."""
        root = components(self.n, [(np.array([a]), np.array([b])) for a, b in self.ties]).tolist()
        uses = {root[x]: set() for x, _, _ in self.cells}
        for x, y, z in self.cells:
            uses[root[x]] |= {root[y], root[z]}
        for _ in range(self.n):
            for reached in uses.values():
                reached |= set().union(*(uses.get(r, set()) for r in reached))
        return any(x in reached for x, reached in uses.items())

    def solution(self, bearing: int | None = None) -> Solution:
        """The same, solved; the first ``bearing`` ids are positions of a parameter."""
        bearing = self.n if bearing is None else bearing
        graph = Graph((), ((bearing,),), {"w": Value(0, (bearing,), True, False)}, frozenset("w"), frozenset("w"),
                      {}, {"w": 4}, (), (), {}, True)  # fmt: skip
        axes = Axes(graph)
        axes.fresh(self.n - bearing)
        for a, b in self.ties:
            axes.ties.append((np.array([a]), np.array([b])))
        for p in self.pins:
            axes.pin("stays", np.array([p]))
        axes.cells = [tuple(np.array([i]) for i in cell) for cell in self.cells]  # type: ignore[misc]
        return solve(axes)


def units(system: System, solution: Solution) -> list[frozenset[int]]:
    """Every unit as a set of ids: closures, and roots outside all cells."""
    celled = set(solution.cells.ravel().tolist())
    sets = [set(c.tolist()) for c in solution.closures]
    sets += [{r} for r in set(solution.root.tolist()) - celled if not solution.pinned[r]]
    return [frozenset(i for i in range(system.n) if solution.root[i] in s) for s in sets]


def irreducible(feasible: set[frozenset[int]]) -> set[frozenset[int]]:
    """Feasible sets that are not unions of smaller ones."""
    return {s for s in feasible if frozenset().union(*(t for t in feasible if t < s)) != s}


@st.composite
def rectangles(draw: st.DrawFn) -> System:
    """Views of axes into rows and columns, with a few ties and pins: what rules make."""
    system = System(0)
    rows, columns, cells = [], [], []
    for _ in range(draw(st.integers(1, 2))):
        r, c = draw(st.sampled_from([(2, 2), (2, 1), (1, 3), (3, 2)]))
        mine = [*range(system.n, system.n + r)], [*range(system.n + r, system.n + r + c)]
        block = [*range(system.n + r + c, system.n + r + c + r * c)]
        system.cells += [(block[i * c + j], mine[0][i], mine[1][j]) for i in range(r) for j in range(c)]
        system.n += r + c + r * c
        rows += mine[0]
        columns += mine[1]
        cells += block
        if system.n > 6:
            break
    ids = st.integers(0, system.n - 1)
    system.ties = draw(st.lists(st.tuples(ids, ids), max_size=3))
    system.pins = draw(st.lists(ids, max_size=2))
    return system


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14))
def test_components_are_the_smallest_label(pairs: list[tuple[int, int]]) -> None:
    label = list(range(12))
    for _ in range(12):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    arrays = [(np.array([a]), np.array([b])) for a, b in pairs]
    assert components(12, arrays).tolist() == label


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rectangles())
def test_units_are_feasible_and_cover_what_can_go(system: System) -> None:
    feasible = system.feasible()
    found = units(system, system.solution())
    assert set(found) <= feasible
    assert len(set(found)) == len(found)
    # an id that some feasible set removes is removed by some unit, and the other way round
    assert frozenset().union(*found) == frozenset().union(*feasible)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rectangles())
def test_units_are_the_irreducible_sets_unless_there_is_a_choice(system: System) -> None:
    feasible = system.feasible()
    found = set(units(system, system.solution()))
    choice = any(a & b and (a & b) not in feasible for a in feasible for b in feasible)
    if not choice and not system.circular():
        assert found == irreducible(feasible)
    unions = {frozenset().union(*some) for k in range(len(found) + 1) for some in itertools.combinations(found, k)}
    assert unions - {frozenset()} <= feasible
    if not choice and not system.circular():
        assert unions - {frozenset()} == feasible


def test_columns_that_no_weight_has_make_no_units() -> None:
    """Rows 4, 5 and columns 6, 7 of a weight 0..3; the columns may go only with everything: no unit of their own."""
    grid = System(8, cells=[(0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)])
    assert sorted(map(sorted, units(grid, grid.solution(4)))) == [[0, 1, 4], [0, 2, 6], [1, 3, 7], [2, 3, 5]]
    # as soon as every row hangs on the first column, that column is all the rows together
    hung = System(8, cells=grid.cells, ties=[(0, 4), (2, 5)])
    found = [s for s in units(hung, hung.solution(4)) if s & {0, 1, 2, 3}]
    assert sorted(sorted(s & {0, 1, 2, 3}) for s in found) == [[0, 1], [1, 3], [2, 3]]


@given(st.data())
def test_counts_are_sums_of_products(data: st.DataObject) -> None:
    n = 12
    root = np.arange(n)
    ids = st.lists(st.integers(0, n - 1), min_size=1, max_size=5).map(np.array)
    terms = data.draw(st.lists(st.tuples(st.integers(0, 9), st.lists(ids, max_size=3).map(tuple)), max_size=5))
    removed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    expected = [c * int(np.prod([(~removed[v]).sum() for v in live])) for c, live in terms]
    assert Counter.of(terms, root)(removed).tolist() == expected


def test_what_would_take_too_long_stays_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.graph.closure.MOST_WORK", 100)
    torch.manual_seed(0)
    net = attention_nets.CASES["separate"]
    model, example = net.make().eval(), net.example()
    groups = sc.couple(sc.trace(model, example))
    assert {g.name: g.units for g in groups} == {"embed:neuron": 16}
    why = {f.name: f.reason for f in groups.frozen if f.dim == 0}
    assert "too many views at once to be told apart" in why["q.weight"]
