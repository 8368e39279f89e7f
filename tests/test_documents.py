"""What the documents show works."""

import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.run.runfile import check_arguments, parse_budget, parse_recover, read_run_file

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_criterion_in_contributing_works():
    found = {}
    exec(blocks(ROOT / "CONTRIBUTING.md", "python")[0], found)  # our own text
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(1.0, 9)[:, None].expand(8, 4))
        net[0].bias.zero_()
    budget = sc.Budget.of_dense(sc.params(net), 0.6)
    result = sc.prune(net, torch.ones(1, 4), budget=budget, criterion=found["largest"])
    (kept,) = result.plan.keep.values()
    assert kept.tolist() == sorted(kept.tolist())  # the largest rows stay
    assert result.plan.made["criterion"] == "largest_weight"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_documents_are_valid(page):
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^secateur prune (?!MODEL).*$", text, re.MULTILINE):
        words = shlex.split(line)
        for option, value in itertools.pairwise(words):
            if option == "--budget":
                parse_budget(value)
            if option == "--recover":
                stage = parse_recover(value)
                assert hasattr(sc, stage.name)


def test_the_run_file_in_the_documents_is_valid(tmp_path):
    (text,) = blocks(ROOT / "docs" / "cli.md", "yaml")
    (tmp_path / "run.yaml").write_text(text)
    assert check_arguments(read_run_file(tmp_path / "run.yaml")).by_kind == {"head": 1, "neuron": 32}


def test_names_that_the_documents_use_are_public():
    for page in PAGES:
        for name in re.findall(r"\bsc\.([a-zA-Z_0-9]+)", page.read_text()):
            assert hasattr(sc, name), f"{page.name}: sc.{name}"


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    materials = (ROOT / "requirements" / "materials.txt").read_text().splitlines()
    names = [re.split(r"[=<>\[]", d)[0] for d in [*wanted, *(m for m in materials if not m.startswith("#"))]]
    said = (ROOT / "docs" / "dependencies.md").read_text()
    assert [n for n in names if n not in said] == []
    pinned = (ROOT / "constraints.txt").read_text()
    direct = [re.split(r"[=<>\[]", d)[0] for d in wanted]
    assert [n for n in direct if not re.search(rf"(?mi)^{n}==", pinned)] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if "```python run" in p.read_text()], ids=lambda p: p.name)
def test_examples_of_a_page_run_in_order(page):
    names = {"__name__": "example"}
    for block in re.findall(r"```python run\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)  # our own text
    assert names
