"""Optimal Jacobian accumulation: chains of functions, plans for their Jacobians, and the execution of plans."""

from .api import jacobian, plan_jacobian
from .bracket import Action, Bracket, Mode
from .chain import Chain
from .cost import OBJECTIVES, Fma, Objective
from .factor import Factor
from .plan import Plan, Step
from .planners import STRATEGIES, register_strategy
from .problem import Problem
from .structure import Block, Dense, Diagonal, Product, Structure, product, product_rule

__all__ = [
    "OBJECTIVES",
    "STRATEGIES",
    "Action",
    "Block",
    "Bracket",
    "Chain",
    "Dense",
    "Diagonal",
    "Factor",
    "Fma",
    "Mode",
    "Objective",
    "Plan",
    "Problem",
    "Product",
    "Step",
    "Structure",
    "jacobian",
    "plan_jacobian",
    "product",
    "product_rule",
    "register_strategy",
]
