"""Prune a trained network to a measured budget: a smaller, verified, loadable model."""

from secateur.choose.allocate import allocate, global_, knapsack, knapsack_with, uniform
from secateur.choose.costs import macs, nbytes, params
from secateur.choose.density import erk, even, owl, ranked, uniform_plus
from secateur.choose.depth import drop_layers
from secateur.choose.effect import by_effect, error_table
from secateur.choose.front import pareto, sweep
from secateur.choose.knapsack import dp
from secateur.choose.measured import measured
from secateur.choose.patterns import Pattern, balanced, block, nm, per_row, unstructured
from secateur.choose.permute import permute_, permute_for
from secateur.choose.plan import make_plan, random_plan
from secateur.choose.sensitivity import sensitivity
from secateur.choose.tables import by_sensitivity, by_table
from secateur.choose.zeros import zero_units
from secateur.errors import (
    ArgumentError,
    BudgetError,
    CoupleError,
    DataError,
    FormatError,
    PlanError,
    SecateurError,
    TargetError,
    TraceError,
)
from secateur.evidence.advice import Advice, Advised
from secateur.evidence.fidelity import fidelity
from secateur.evidence.front import Front
from secateur.evidence.quality import Figure
from secateur.evidence.report import read_report, report_schema, to_json, to_table, write_report
from secateur.evidence.running_cost import Running, co2_per_million, cost_per_million, running
from secateur.evidence.verify import verify
from secateur.export.checkpoint import load
from secateur.export.huggingface import save_pretrained
from secateur.export.masks import save_masks
from secateur.export.onnx import to_onnx
from secateur.export.plans import load_plan, save_plan
from secateur.export.sparse import load_masks, load_sparse, save_sparse
from secateur.graph.couple import Groups, couple
from secateur.graph.depth import Layer, layers
from secateur.graph.record import trace
from secateur.graph.recorded import Graph
from secateur.graph.rules import EXPERT_RULES, RESIDUAL_RULES, RULES
from secateur.graph.surgery import apply, apply_, apply_to_optimizer_, masked
from secateur.llm.perplexity import Perplexity, perplexity
from secateur.llm.prune import Pruned, Pruning, llm_prune
from secateur.llm.prune_experts import llm_prune_experts
from secateur.llm.recover_folder import recover_folder
from secateur.llm.shrink.asked import Shrinking
from secateur.llm.shrink.run import Shrunk, llm_shrink
from secateur.run.advise import Confirmed, advise, confirm
from secateur.run.front import front
from secateur.run.pipeline import Result, prune
from secateur.run.saving import save
from secateur.run.sparsify import SparseResult, sparsify
from secateur.run.take import Taken, take
from secateur.score.calibrate import calibrate
from secateur.score.criteria import (
    bn_scale,
    by_cost,
    by_max,
    by_mean,
    fpgm,
    magnitude,
    magnitude_l1,
    obs,
    obs_with,
    random,
    score,
    taylor,
    taylor_abs,
    taylor_gate,
    taylor_with,
    unnormalized,
)
from secateur.score.depth import block_influence
from secateur.score.gradients import exact_diagonal, hutchinson, squared_gradient
from secateur.score.weigh_fisher import obert, woodfisher, woodfisher_update, woodfisher_with
from secateur.score.weigh_flow import synflow
from secateur.score.weigh_gradient import (
    fisher,
    fisher_with,
    grasp,
    grasp_with,
    obd,
    obd_with,
    snip,
    snip_with,
    taylor_second,
    taylor_second_with,
)
from secateur.score.weigh_inputs import ria, ria_with, wanda
from secateur.score.weigh_plain import lamp
from secateur.score.weights import calibrate_weights, prunable, saliency
from secateur.solve.admm import admm, admm_with, alps, alps_with
from secateur.solve.dsnot import dsnot, dsnot_with
from secateur.solve.gram import Gram
from secateur.solve.least_squares import least_squares, least_squares_with
from secateur.solve.solver import Solver
from secateur.solve.sparsegpt import sparsegpt, sparsegpt_with
from secateur.targets.compiled import compiled
from secateur.targets.cuda_24 import cuda_24
from secateur.targets.eager import eager, with_threads
from secateur.targets.energy import Energy, energy, measure_energy
from secateur.targets.executorch import executorch
from secateur.targets.latency import latency
from secateur.targets.litert import litert
from secateur.targets.measure import compare, measure, measure_models
from secateur.targets.meters import Meter, find_meter, nvml, rapl, watts
from secateur.targets.onnxruntime import onnxruntime, onnxruntime_cuda
from secateur.targets.onnxruntime_int8 import onnxruntime_int8
from secateur.targets.openvino import openvino
from secateur.targets.remote import remote
from secateur.targets.table import load_table, save_table
from secateur.targets.tensorrt import tensorrt
from secateur.train import schedule as schedule
from secateur.train.acdc import acdc, alternating
from secateur.train.callbacks.logging import log_sparsity
from secateur.train.distill import distill
from secateur.train.dynamic import fixed, gmp, rigl, sparse_evolution, static
from secateur.train.losses import cosine_loss, kl_logits, pair_similarity_loss, relative_mse
from secateur.train.masks import Masks, from_torch_prune, to_torch_prune
from secateur.train.movement import movement, soft_movement
from secateur.train.recalibrate import recalibrate_bn
from secateur.train.recovery import History, Recovery, finetune
from secateur.train.refit import refit
from secateur.train.regularize import group_decay, group_lasso, growing_l2, residue, unit_norms, vanished
from secateur.train.rewind import (
    across_layers,
    fine_tune,
    layerwise,
    random_init,
    rewind_learning_rate,
    rewind_to,
    shuffled_mask,
)
from secateur.train.saved import load_training, save_training
from secateur.train.sparse import Method, Sparse
from secateur.train.srste import asp, srste
from secateur.train.threshold import learned_threshold
from secateur.train.tickets import Tickets, tickets
from secateur.types import Artefact, Budget, Cost, Criterion, Limits, Measurement, Plan, Report, Row, Scores, Target

__all__ = [
    "EXPERT_RULES",
    "RESIDUAL_RULES",
    "RULES",
    "Advice",
    "Advised",
    "ArgumentError",
    "Artefact",
    "Budget",
    "BudgetError",
    "Confirmed",
    "Cost",
    "CoupleError",
    "Criterion",
    "DataError",
    "Energy",
    "Figure",
    "FormatError",
    "Front",
    "Gram",
    "Graph",
    "Groups",
    "History",
    "Layer",
    "Limits",
    "Masks",
    "Measurement",
    "Meter",
    "Method",
    "Pattern",
    "Perplexity",
    "Plan",
    "PlanError",
    "Pruned",
    "Pruning",
    "Recovery",
    "Report",
    "Result",
    "Row",
    "Running",
    "Scores",
    "SecateurError",
    "Shrinking",
    "Shrunk",
    "Solver",
    "Sparse",
    "SparseResult",
    "Taken",
    "Target",
    "TargetError",
    "Tickets",
    "TraceError",
    "acdc",
    "across_layers",
    "admm",
    "admm_with",
    "advise",
    "allocate",
    "alps",
    "alps_with",
    "alternating",
    "apply",
    "apply_",
    "apply_to_optimizer_",
    "asp",
    "balanced",
    "block",
    "block_influence",
    "bn_scale",
    "by_cost",
    "by_effect",
    "by_max",
    "by_mean",
    "by_sensitivity",
    "by_table",
    "calibrate",
    "calibrate_weights",
    "co2_per_million",
    "compare",
    "compiled",
    "confirm",
    "cosine_loss",
    "cost_per_million",
    "couple",
    "cuda_24",
    "distill",
    "dp",
    "drop_layers",
    "dsnot",
    "dsnot_with",
    "eager",
    "energy",
    "erk",
    "error_table",
    "even",
    "exact_diagonal",
    "executorch",
    "fidelity",
    "find_meter",
    "fine_tune",
    "finetune",
    "fisher",
    "fisher_with",
    "fixed",
    "fpgm",
    "from_torch_prune",
    "front",
    "global_",
    "gmp",
    "grasp",
    "grasp_with",
    "group_decay",
    "group_lasso",
    "growing_l2",
    "hutchinson",
    "kl_logits",
    "knapsack",
    "knapsack_with",
    "lamp",
    "latency",
    "layers",
    "layerwise",
    "learned_threshold",
    "least_squares",
    "least_squares_with",
    "litert",
    "llm_prune",
    "llm_prune_experts",
    "llm_shrink",
    "load",
    "load_masks",
    "load_plan",
    "load_sparse",
    "load_table",
    "load_training",
    "log_sparsity",
    "macs",
    "magnitude",
    "magnitude_l1",
    "make_plan",
    "masked",
    "measure",
    "measure_energy",
    "measure_models",
    "measured",
    "movement",
    "nbytes",
    "nm",
    "nvml",
    "obd",
    "obd_with",
    "obert",
    "obs",
    "obs_with",
    "onnxruntime",
    "onnxruntime_cuda",
    "onnxruntime_int8",
    "openvino",
    "owl",
    "pair_similarity_loss",
    "params",
    "pareto",
    "per_row",
    "permute_",
    "permute_for",
    "perplexity",
    "prunable",
    "prune",
    "random",
    "random_init",
    "random_plan",
    "ranked",
    "rapl",
    "read_report",
    "recalibrate_bn",
    "recover_folder",
    "refit",
    "relative_mse",
    "remote",
    "report_schema",
    "residue",
    "rewind_learning_rate",
    "rewind_to",
    "ria",
    "ria_with",
    "rigl",
    "running",
    "saliency",
    "save",
    "save_masks",
    "save_plan",
    "save_pretrained",
    "save_sparse",
    "save_table",
    "save_training",
    "score",
    "sensitivity",
    "shuffled_mask",
    "snip",
    "snip_with",
    "soft_movement",
    "sparse_evolution",
    "sparsegpt",
    "sparsegpt_with",
    "sparsify",
    "squared_gradient",
    "srste",
    "static",
    "sweep",
    "synflow",
    "take",
    "taylor",
    "taylor_abs",
    "taylor_gate",
    "taylor_second",
    "taylor_second_with",
    "taylor_with",
    "tensorrt",
    "tickets",
    "to_json",
    "to_onnx",
    "to_table",
    "to_torch_prune",
    "trace",
    "uniform",
    "uniform_plus",
    "unit_norms",
    "unnormalized",
    "unstructured",
    "vanished",
    "verify",
    "wanda",
    "watts",
    "with_threads",
    "woodfisher",
    "woodfisher_update",
    "woodfisher_with",
    "write_report",
    "zero_units",
]
