"""Optimal Jacobian accumulation: functions and chains, plans for their Jacobians, and the execution of plans."""

from .api import gauss_newton, jacobian, plan_jacobian
from .bracket import Action, Bracket, Mode
from .chain import Chain
from .cost import OBJECTIVES, Fma, Memory, Objective
from .factor import Factor
from .given import multiply_given
from .infeasible import InfeasiblePlanError
from .plan import Plan, Step
from .planners import STRATEGIES, register_strategy
from .planning import plan_factors
from .problem import Problem
from .structure import (
    Banded,
    Block,
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    Identity,
    IdentityPlus,
    Index,
    Kronecker,
    LowerTriangular,
    LowRank,
    Pattern,
    PlusLowRank,
    Pool,
    Product,
    RowKronecker,
    ScaledIdentity,
    Scatter,
    Stacked,
    Structure,
    Sum,
    Transposed,
    UpperTriangular,
    WeightedGather,
    WeightedScatter,
    Zero,
    add,
    addition,
    multiply,
    product,
    product_rule,
    structure_from_data,
)
from .timing import calibrate_device

__all__ = [
    "OBJECTIVES", "STRATEGIES", "Action", "Banded", "Block", "BlockDiagonal", "Bracket", "Chain", "Dense", "Diagonal",
    "Factor", "Fma", "Gather", "Identity", "IdentityPlus", "Index", "InfeasiblePlanError", "Kronecker", "LowRank",
    "LowerTriangular", "Memory", "Mode", "Objective", "Pattern", "Plan", "PlusLowRank", "Pool", "Problem", "Product",
    "RowKronecker", "ScaledIdentity", "Scatter", "Stacked", "Step", "Structure", "Sum", "Transposed", "UpperTriangular",
    "WeightedGather", "WeightedScatter", "Zero", "add", "addition", "calibrate_device", "gauss_newton", "jacobian",
    "multiply", "multiply_given", "plan_factors", "plan_jacobian", "product", "product_rule", "register_strategy",
    "structure_from_data",
]  # fmt: skip
