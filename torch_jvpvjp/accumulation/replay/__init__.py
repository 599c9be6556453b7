"""Recorded programs made quick: what is idle goes, like calls run as one, and the rest is written as by hand."""

from .arithmetic import unit_factors, without_idle_arithmetic, zero_weights
from .channels_last import with_channels_innermost
from .copies import without_double_copies
from .graph import CompiledProgram
from .innermost import with_samples_innermost
from .joined import joined
from .laid_alike import with_constants_laid_alike
from .layout import Layout, Layouts, layout_of
from .one_row import by_vectors
from .owned import with_own_results
from .pieces import without_joins
from .quick_products import kernel_bytes, with_quick_products
from .quick_pullbacks import with_quick_pullbacks
from .quick_sweeps import with_quick_sweeps
from .recurrences import with_segments_side_by_side
from .small import by_entries, small_or_whole
from .tidying import without_idle_moves, without_idle_parts
from .together import Worth, run_together
from .writing import Spelling, by_hand, written

__all__ = [
    "CompiledProgram", "Layout", "Layouts", "Spelling", "Worth", "by_entries", "by_hand", "by_vectors", "joined",
    "kernel_bytes", "layout_of", "run_together", "small_or_whole", "with_channels_innermost", "with_own_results",
    "with_constants_laid_alike", "with_quick_products", "with_quick_pullbacks", "with_quick_sweeps",
    "unit_factors", "with_samples_innermost", "with_segments_side_by_side", "without_double_copies",
    "without_idle_arithmetic", "without_idle_moves", "without_idle_parts", "without_joins", "written", "zero_weights",
]  # fmt: skip
