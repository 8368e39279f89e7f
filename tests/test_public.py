"""The public surface: these names, each explained, in rooms that look to their left only."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import secateur as sc

SOURCE = Path(sc.__file__).parent

NAMES = """
EXPERT_RULES RESIDUAL_RULES RULES Advice Advised ArgumentError Artefact Budget BudgetError Confirmed Cost CoupleError
Criterion DataError Energy Figure FormatError Front Gram Graph Groups History Layer Limits Masks Measurement Meter
Method Pattern Perplexity Plan PlanError Pruned Pruning Recovery Report Result Row Running Scores SecateurError
Shrinking Shrunk Solver Sparse SparseResult Taken Target TargetError Tickets TraceError acdc across_layers admm
admm_with advise allocate alps alps_with alternating apply apply_ apply_to_optimizer_ asp balanced block
block_influence bn_scale by_cost by_effect by_max by_mean by_sensitivity by_table calibrate calibrate_weights
co2_per_million compare compiled confirm cosine_loss cost_per_million couple cuda_24 distill dp drop_layers dsnot
dsnot_with eager energy erk error_table even exact_diagonal executorch fidelity find_meter fine_tune finetune fisher
fisher_with fixed fpgm from_torch_prune front global_ gmp grasp grasp_with group_decay group_lasso growing_l2
hutchinson kl_logits knapsack knapsack_with lamp latency layers layerwise learned_threshold least_squares
least_squares_with litert llm_prune llm_prune_experts llm_shrink load load_masks load_plan load_sparse load_table
load_training log_sparsity macs magnitude magnitude_l1 make_plan masked measure measure_energy measure_models
measured movement nbytes nm nvml obd obd_with obert obs obs_with onnxruntime onnxruntime_cuda onnxruntime_int8 openvino owl
pair_similarity_loss params pareto per_row permute_ permute_for perplexity prunable prune random random_init
random_plan ranked rapl read_report recalibrate_bn recover_folder refit relative_mse remote report_schema residue
rewind_learning_rate rewind_to ria ria_with rigl running saliency save save_masks save_plan save_pretrained save_sparse
save_table save_training score sensitivity shuffled_mask snip snip_with soft_movement sparse_evolution sparsegpt
sparsegpt_with sparsify squared_gradient srste static sweep synflow take taylor taylor_abs taylor_gate taylor_second
taylor_second_with taylor_with tensorrt tickets to_json to_onnx to_table to_torch_prune trace uniform uniform_plus
unit_norms unnormalized unstructured vanished verify wanda watts with_threads woodfisher woodfisher_update
woodfisher_with write_report zero_units
""".split()

ROOMS = [
    "digest",
    "errors",
    "atomic",
    "scratch",
    "progress",
    "types",
    "calling",
    "products",
    "graph",
    "score",
    "choose",
    "solve",
    "export",
    "targets",
    "train",
]
ROOMS += [
    "evidence",
    "testing_targets",
    "testing",
    "run",
    "llm",
    "cli",
]
"""Left to right: a room imports from itself and from those before it. Targets measure what export writes."""


def test_the_names_are_these_and_sorted() -> None:
    assert sc.__all__ == NAMES
    kind = lambda n: 0 if n.isupper() else 1 if n[0].isupper() else 2  # noqa: E731 - constants, classes, the rest
    assert sorted(sc.__all__, key=lambda n: (kind(n), n)) == NAMES


def test_nothing_else_is_public() -> None:
    found = {n for n, v in vars(sc).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert found == set(NAMES)


def public(kind: Any) -> list[str]:
    return [n for n in NAMES if kind(getattr(sc, n))]


@pytest.mark.parametrize("name", public(lambda v: inspect.isfunction(v) or inspect.isclass(v)))
def test_functions_and_classes_are_explained(name: str) -> None:
    value = getattr(sc, name)
    text = inspect.getdoc(value) or ""
    assert len(text.split()) >= 4
    first = text.partition("\n\n")[0]
    assert first[0].isupper() or first.startswith("`")
    if inspect.isfunction(value):
        hints = value.__annotations__
        assert "return" in hints
        arguments = [p for p in inspect.signature(value).parameters if p != "self"]
        assert all(p in hints for p in arguments)


EXAMPLES_ELSEWHERE = {"apply_", "apply_to_optimizer_", "masked", "write_report", "read_report"}


@pytest.mark.parametrize("name", public(inspect.isfunction))
def test_functions_show_themselves(name: str) -> None:
    text = inspect.getdoc(getattr(sc, name)) or ""
    if name not in EXAMPLES_ELSEWHERE and ">>>" not in text:
        assert len(text.split()) < 60, f"{name} explains at length and shows nothing"


@pytest.mark.parametrize("name", public(lambda v: isinstance(v, (sc.Criterion, sc.Target))))
def test_values_have_the_name_they_carry(name: str) -> None:
    assert getattr(sc, name).name == name


def test_names_that_hold() -> None:
    """The signatures that others build on."""

    def arguments(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert arguments(sc.trace)[:2] == ["model", "example"]
    assert arguments(sc.couple) == ["graph", "rules", "ignore", "every"]
    assert arguments(sc.score) == ["model", "groups", "criterion", "stats"]
    assert arguments(sc.calibrate)[:3] == ["model", "batches", "criterion"]
    assert arguments(sc.allocate)[:3] == ["scores", "budget", "allocation"]
    assert arguments(sc.apply) == arguments(sc.apply_) == arguments(sc.masked) == ["plan", "model"]
    assert arguments(sc.verify)[:4] == ["model", "plan", "small", "example"]
    assert arguments(sc.random_plan) == ["groups", "sparsity", "seed"]
    assert arguments(sc.latency)[:3] == ["model", "example", "target"]
    assert arguments(sc.macs) == ["model", "example"]
    assert arguments(sc.params) == arguments(sc.nbytes) == ["model"]
    assert arguments(sc.save)[:4] == ["folder", "model", "plan", "report"]
    assert arguments(sc.load) == ["folder", "factory_or_config"]
    keywords = {n: p.default for n, p in inspect.signature(sc.prune).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert {n: keywords[n] for n in ("criterion", "allocation", "batches", "recover", "target", "seed")} == {
        "criterion": sc.magnitude,
        "allocation": sc.global_,
        "batches": None,
        "recover": None,
        "target": None,
        "seed": 0,
    }
    assert keywords["budget"] is inspect.Parameter.empty


def imports(path: Path) -> set[str]:
    """Rooms that a file imports when it runs; what only type checkers read does not count."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "secateur":
                found.update(a.name if a.name in ROOMS else "secateur" for a in node.names)
            elif (node.module or "").startswith("secateur."):
                found.add((node.module or "").split(".")[1])
        if isinstance(node, ast.Import):
            found.update(
                (a.name.split(".") + ["secateur"])[1] for a in node.names if a.name.split(".")[0] == "secateur"
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_room_imports_from_its_right(path: Path) -> None:
    parts = path.relative_to(SOURCE).parts
    room = parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in ROOMS
    found = imports(path)
    if room in ("run", "cli"):
        found.discard("secateur")  # names in a run file are looked up among the public ones
    assert "secateur" not in found, "import from the room itself"
    assert not [r for r in found if ROOMS.index(r) > ROOMS.index(room)]


def test_rooms_hold_real_modules_only() -> None:
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert folders <= set(ROOMS)
    assert not [p for p in SOURCE.rglob("*") if p.stem in ("utils", "helpers", "misc", "common")]


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_importing_is_quick_and_quiet() -> None:
    """Heavy packages are imported where they are used."""
    code = (
        "import sys, secateur; print(sorted({'matplotlib', 'scipy', 'pandas', 'transformers', 'onnx', 'onnxruntime', "
        "'jinja2', 'sklearn'} & set(sys.modules)))"
    )
    paths = {"PYTHONPATH": str(SOURCE.parent), "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
