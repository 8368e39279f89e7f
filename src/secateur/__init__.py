"""Prune a trained network to a measured budget: a smaller, verified, loadable model."""

from secateur.choose.allocate import allocate, global_, knapsack, knapsack_with, uniform
from secateur.choose.costs import macs, nbytes, params
from secateur.choose.depth import drop_layers
from secateur.choose.effect import by_effect
from secateur.choose.plan import make_plan, random_plan
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
from secateur.evidence.quality import Figure
from secateur.evidence.report import read_report, report_schema, to_json, to_table, write_report
from secateur.evidence.verify import verify
from secateur.export.checkpoint import load
from secateur.export.huggingface import save_pretrained
from secateur.export.onnx import to_onnx
from secateur.export.plans import load_plan, save_plan
from secateur.graph.couple import Groups, couple
from secateur.graph.depth import Layer, layers
from secateur.graph.record import trace
from secateur.graph.recorded import Graph
from secateur.graph.rules import EXPERT_RULES, RESIDUAL_RULES, RULES
from secateur.graph.surgery import apply, apply_, apply_to_optimizer_, masked
from secateur.run.pipeline import Result, prune
from secateur.run.saving import save
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
from secateur.targets.eager import eager, with_threads
from secateur.targets.latency import latency
from secateur.targets.measure import compare, measure, measure_models
from secateur.targets.onnxruntime import onnxruntime
from secateur.train.distill import distill
from secateur.train.losses import cosine_loss, kl_logits, pair_similarity_loss, relative_mse
from secateur.train.recalibrate import recalibrate_bn
from secateur.train.recovery import History, Recovery, finetune
from secateur.train.refit import refit
from secateur.types import Artefact, Budget, Cost, Criterion, Limits, Measurement, Plan, Report, Row, Scores, Target

__all__ = [
    "EXPERT_RULES",
    "RESIDUAL_RULES",
    "RULES",
    "ArgumentError",
    "Artefact",
    "Budget",
    "BudgetError",
    "Cost",
    "CoupleError",
    "Criterion",
    "DataError",
    "Figure",
    "FormatError",
    "Graph",
    "Groups",
    "History",
    "Layer",
    "Limits",
    "Measurement",
    "Plan",
    "PlanError",
    "Recovery",
    "Report",
    "Result",
    "Row",
    "Scores",
    "SecateurError",
    "Target",
    "TargetError",
    "TraceError",
    "allocate",
    "apply",
    "apply_",
    "apply_to_optimizer_",
    "block_influence",
    "bn_scale",
    "by_cost",
    "by_effect",
    "by_max",
    "by_mean",
    "calibrate",
    "compare",
    "cosine_loss",
    "couple",
    "distill",
    "drop_layers",
    "eager",
    "finetune",
    "fpgm",
    "global_",
    "kl_logits",
    "knapsack",
    "knapsack_with",
    "latency",
    "layers",
    "load",
    "load_plan",
    "macs",
    "magnitude",
    "magnitude_l1",
    "make_plan",
    "masked",
    "measure",
    "measure_models",
    "nbytes",
    "obs",
    "obs_with",
    "onnxruntime",
    "pair_similarity_loss",
    "params",
    "prune",
    "random",
    "random_plan",
    "read_report",
    "recalibrate_bn",
    "refit",
    "relative_mse",
    "report_schema",
    "save",
    "save_plan",
    "save_pretrained",
    "score",
    "taylor",
    "taylor_abs",
    "taylor_gate",
    "taylor_with",
    "to_json",
    "to_onnx",
    "to_table",
    "trace",
    "uniform",
    "unnormalized",
    "verify",
    "with_threads",
    "write_report",
]
