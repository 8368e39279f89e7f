"""Prune a trained network to a measured budget: a smaller, verified, loadable model."""
from secateur.graph.couple import couple
from secateur.graph.record import trace
from secateur.graph.rules import RESIDUAL_RULES, RULES
from secateur.choose.plan import make_plan, random_plan
from secateur.evidence.verify import verify
from secateur.graph.surgery import apply, apply_, apply_to_optimizer_, masked
from secateur.types import Budget
