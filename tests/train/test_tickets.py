"""Lottery tickets: the paper's loop, the same bits after kill -9, and controls that are what they say."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ticket_recipe as tr
import torch
from torch import nn

from secateur.errors import ArgumentError, DataError, FormatError
from secateur.export.sparse import load_masks, load_sparse
from secateur.train.rewind import (
    Start,
    across_layers,
    fine_tune,
    layerwise,
    random_init,
    rewind_learning_rate,
    rewind_to,
    shuffled_mask,
)
from secateur.train.ticket_rows import CSV
from secateur.train.tickets import Training, _made, _mixed, tickets

HERE = Path(__file__).parent
CUT = layerwise(0.2, {"4": 0.1})


def imp(folder, rounds=2, **more):
    return tickets(tr.make_model, tr.train, tr.evaluate, rounds, folder, **{"cut": CUT, **more})


def rows_of(folder):
    with (folder / CSV).open() as f:
        return list(csv.DictReader(f))


def by_hand(rounds, rewind_step, weights_too, seed=0):
    """The papers' loop, written out: masks a round, and the trained weights."""
    model = _made(tr.make_model, seed)
    alive = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() == 2}
    kept, first, found = None, 0, []
    for r in range(rounds + 1):
        if r:
            for n, mask in alive.items():
                w = model.state_dict()[n].abs()
                living = sorted((float(w.flatten()[i]), -i) for i in mask.flatten().nonzero()[:, 0].tolist())
                for _, i in living[: round((0.1 if n.startswith("4") else 0.2) * len(living))]:
                    mask.view(-1)[-i] = False
            first = rewind_step
            if weights_too:
                model.load_state_dict(kept)
        model.train()
        with torch.no_grad():
            for n, mask in alive.items():
                model.get_parameter(n).mul_(mask)
        torch.manual_seed(_mixed(seed, 2, first))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for step in range(first, tr.STEPS):
            if r == 0 and step == rewind_step:
                kept = {n: t.clone() for n, t in model.state_dict().items()}
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / tr.STEPS)
            x, y = tr.batch(seed, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for n, mask in alive.items():
                    p = model.get_parameter(n)
                    p.mul_(mask)
                    optimizer.state[p]["momentum_buffer"].mul_(mask)
            torch.manual_seed(_mixed(seed, 2, step + 1))
        found.append(({n: m.clone() for n, m in alive.items()}, {n: t.clone() for n, t in model.state_dict().items()}))
    return found


@pytest.mark.parametrize(
    ("rewind", "step", "weights"),
    [(rewind_to(0), 0, True), (rewind_to(7), 7, True), (rewind_learning_rate(), 0, False), (fine_tune(10), 20, False)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_rounds_are_those_of_the_papers(tmp_path, rewind, step, weights):
    found = imp(tmp_path / "out", rounds=3, rewind=rewind, controls=())
    for r, (masks, trained) in enumerate(by_hand(3, step, weights)):
        saved = load_sparse(tmp_path / "out" / f"round-{r:02d}", tr.make_model).state_dict()
        assert all(torch.equal(saved[n], t) for n, t in trained.items())
        kept = sum(int(m.sum()) for m in masks.values())
        assert (found.rows[r].round, found.rows[r].kept) == (r, kept)
        if r:
            mine = load_masks(tmp_path / "out" / f"round-{r:02d}")
            assert all(torch.equal(mine[n], m) for n, m in masks.items() if n in mine)
    assert all(torch.equal(found.masks[n], m) for n, m in masks.items())
    assert all(torch.equal(found.model.state_dict()[n], t) for n, t in trained.items())


def test_the_ladder_of_the_paper():
    alive = {
        "0.weight": torch.ones(300 * 784, dtype=torch.bool),
        "2.weight": torch.ones(100 * 300, dtype=torch.bool),
        "4.weight": torch.ones(10 * 100, dtype=torch.bool),
    }
    total, cut, seen = sum(m.numel() for m in alive.values()), layerwise(0.2, {"4.weight": 0.1}), {}
    for r in range(1, 21):
        counts = cut.counts({}, alive)
        alive = {n: torch.arange(m.numel()) < counts[n] for n, m in alive.items()}
        seen[r] = round(100 * sum(counts.values()) / total, 1)
    assert [seen[r] for r in (3, 7, 9, 12, 15, 16, 18, 20)] == [51.3, 21.1, 13.5, 7.0, 3.6, 2.9, 1.9, 1.2]


def test_across_layers_is_one_ranking(tmp_path):
    found = imp(tmp_path / "out", rounds=1, cut=across_layers(0.5), controls=())
    dense = load_sparse(tmp_path / "out" / "round-00", tr.make_model)
    sizes = torch.cat([dense.get_parameter(n).detach().abs().flatten() for n in found.masks])
    kept = torch.cat([m.flatten() for m in found.masks.values()])
    assert int(kept.sum()) == sizes.numel() - round(0.5 * sizes.numel())
    assert sizes[kept].min() >= sizes[~kept].max()


def test_files_and_rows_say_the_same(tmp_path):
    found = imp(tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [(r["round"], r["case"]) for r in rows] == [
        ("0", "ticket"),
        *[(str(r), c) for r in (1, 2) for c in ("ticket", "random_init", "shuffled_mask")],
    ]
    assert [float(r["loss"]) for r in rows] == [r.values["loss"] for r in found.rows]
    assert [float(r["density"]) for r in rows] == [r.density for r in found.rows]
    assert len({r["loss"] for r in rows}) == len(rows)  # each was trained by itself
    assert (tmp_path / "out" / "tickets.png").read_bytes().startswith(b"\x89PNG")
    start = load_sparse(tmp_path / "out" / "start", tr.make_model).state_dict()
    assert all(torch.equal(start[n], t) for n, t in _made(tr.make_model, 0).state_dict().items())
    assert found.table().row_count == len(rows)


def test_controls_differ_from_the_ticket_in_one_thing_only():
    model = tr.make_model()
    masks = {"0.weight": torch.rand(16, 6) < 0.3, "4.weight": torch.rand(3, 16) < 0.5}
    start = Start(model.state_dict(), masks, 7)
    fresh = tr.make_model().state_dict()
    again = random_init(start, lambda: fresh, torch.Generator())
    assert again.masks is masks
    assert again.weights is fresh
    assert again.first_step == 0
    shuffled = shuffled_mask(start, lambda: fresh, torch.Generator().manual_seed(0))
    assert shuffled.weights is start.weights
    assert shuffled.first_step == 7
    for n, m in shuffled.masks.items():
        assert m.sum() == masks[n].sum()
        assert not torch.equal(m, masks[n])


def command(folder, rounds, env):
    code = (
        "import sys, ticket_recipe as tr\nfrom secateur.train.tickets import tickets\n"
        f"tickets(**tr.recipe(), rounds={rounds}, folder={str(folder)!r})"
    )
    paths = os.pathsep.join([str(HERE), *sys.path])
    around = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, "-c", code], env=around, check=False).returncode


def test_a_run_that_is_killed_in_a_round_gives_the_same_file_to_the_bit(tmp_path):
    torch.set_num_threads(1)
    imp(tmp_path / "whole")
    counter = tmp_path / "die"
    steps = 3 * tr.STEPS + 11  # in the middle of round 1's second control
    counter.write_text(str(steps))
    assert command(tmp_path / "cut", 2, {"DIE_AFTER": str(counter)}) == -signal.SIGKILL
    assert not counter.exists()
    half = rows_of(tmp_path / "cut")
    assert [r["case"] for r in half] == ["ticket", "ticket", "random_init"]
    (tmp_path / "cut" / ".round-02.abc").mkdir()  # what a kill while writing leaves
    imp(tmp_path / "cut")
    for name in (CSV, "round-02/sparse.safetensors", "round-02/sparse.json", "start/sparse.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_more_rounds_go_on_and_a_finished_run_trains_nothing(tmp_path):
    imp(tmp_path / "long", rounds=3)
    imp(tmp_path / "grown", rounds=1)
    told = []
    imp(tmp_path / "grown", rounds=3, tell=lambda done, of, words: told.append((done, of, words)))
    assert told[0] == (4, 10, "round 2, ticket")
    assert (tmp_path / "grown" / CSV).read_bytes() == (tmp_path / "long" / CSV).read_bytes()

    def never(model, run):
        raise AssertionError

    again = tickets(tr.make_model, never, tr.evaluate, 3, tmp_path / "long", cut=CUT)
    assert len(again.rows) == 10


def test_another_run_does_not_go_on_from_it(tmp_path):
    imp(tmp_path / "out", rounds=1, controls=())
    for more, words in [({"seed": 1}, "seed"), ({"cut": layerwise(0.3)}, "cut"), ({"rewind": rewind_to(5)}, "rewind")]:
        with pytest.raises(FormatError, match=words):
            imp(tmp_path / "out", rounds=1, **{"controls": (), **more})
    state = next((tmp_path / "out" / "state").glob("*"))
    for file in (tmp_path / "out" / "state").glob("*"):
        file.write_bytes(state.read_bytes()[:100])
    with pytest.raises(FormatError, match="no training state"):
        imp(tmp_path / "out", rounds=1, controls=())


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="rounds"):
        imp(tmp_path / "a", rounds=0)
    with pytest.raises(ArgumentError, match=r"call run\.attach"):
        tickets(tr.make_model, lambda m, run: None, tr.evaluate, 1, tmp_path / "b")
    with pytest.raises(ArgumentError, match=r"rewind_to\(500\): the training took 30 steps only"):
        imp(tmp_path / "c", rewind=rewind_to(500))
    with pytest.raises(ArgumentError, match="took 30 steps, none is left"):
        imp(tmp_path / "d", rewind=rewind_learning_rate(30))
    with pytest.raises(ArgumentError, match=r"rates: 'nowhere' matches no weight"):
        imp(tmp_path / "e", cut=layerwise(0.2, {"nowhere": 0.1}))
    for rate in (0, 1, -0.2, "much"):
        with pytest.raises(ArgumentError, match="rate is the fraction"):
            layerwise(rate)
    for step in (-1, 0.5):
        with pytest.raises(ArgumentError, match="optimizer steps"):
            rewind_to(step)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("")
    with pytest.raises(ArgumentError, match=r"holds thesis\.tex"):
        imp(tmp_path / "used")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="is a file"):
        imp(tmp_path / "file")


def test_pruned_weights_are_zero_in_every_step():
    model = tr.make_model()
    masks = {"0.weight": torch.rand(16, 6) < 0.5}
    run = Training(model.train(), Start(model.state_dict(), masks, 0), 0, None)
    assert (model[0].weight[~masks["0.weight"]] == 0).all()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    run.attach(optimizer)
    for step in range(5):
        x, y = tr.batch(0, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert (model[0].weight[~masks["0.weight"]] == 0).all()
    run.end()
    assert not torch.signbit(model[0].weight[~masks["0.weight"]]).any()
    assert run.step == 5


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("good", "expected a number"),
        (torch.ones(2), "expected a number"),
        ({}, "give at least one"),
        ({"kept": 0.5}, "columns of tickets.csv"),
    ],
)
def test_what_evaluate_may_say(said: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        tickets(lambda: nn.Linear(2, 1), lambda model, run: one_step(model, run), lambda m: said, 1, tmp_path / "t")


def one_step(model: nn.Module, run: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.attach(optimizer)
    for _ in range(run.first_step, 2):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


def test_a_training_that_diverged_is_a_row_like_any_other(tmp_path: Path) -> None:
    found = tickets(lambda: nn.Linear(2, 1), one_step, lambda m: float("nan"), 1, tmp_path / "t", cut=layerwise(0.5))
    again = tickets(lambda: nn.Linear(2, 1), one_step, lambda m: float("nan"), 1, tmp_path / "t", cut=layerwise(0.5))
    assert (
        [r.case for r in again.rows]
        == [r.case for r in found.rows]
        == ["ticket", "ticket", "random_init", "shuffled_mask"]
    )
    with pytest.raises(ArgumentError, match="seed must be a whole number"):
        tickets(lambda: nn.Linear(2, 1), one_step, lambda m: 0.0, 1, tmp_path / "u", seed=-1)
    with pytest.raises(ArgumentError, match=r"such as sc.layerwise\(0.2\)"):
        tickets(lambda: nn.Linear(2, 1), one_step, lambda m: 0.0, 1, tmp_path / "u", cut=0.2)  # type: ignore[arg-type]
