"""What a call of attention's pullback needs, worked out from shapes, strides, dtypes and options alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .._dtypes import accumulator
from .._launch import Prepared
from ._adjoint_tiles import Facts, _delta_kernel
from .arguments import (
    Operands,
    Scores,
    are_alike,
    capped,
    head_strides,
    is_fine,
    is_wide,
    padded,
    rule_arguments,
    shared_size,
    unit_last,
    with_front,
)
from .bias import _bias_kernel
from .columns import _columns_kernel
from .config import Config, adjoint_config, precision, sums_apart
from .rows import _rows_kernel

GIVEN = (
    *("q", "k", "v", "q_dot", "k_dot", "v_dot", "bias", "bias_dot", "mask"),
    *("o", "o_dot", "w", "u", "lse", "lse_dot", "lse_bar", "lse_bar_dot", "rest"),
    *("slopes", "ranges", "seed", "kv_count", "kv_index", "q_count", "q_index"),
)
RESULTS = tuple(f"{name}_{order}" for order in ("first", "second") for name in Operands._fields)
_KNOWN = ("known_lse", "delta", "known_lse_dot", "delta_dot", "known_rest")
_PLACES = {name: i for i, name in enumerate((*GIVEN, *_KNOWN, "spans", *RESULTS, "nothing"))}
_STORED = 128  # rows of the largest tile: what is known of rows is stored for whole tiles

_HEADS = ("q", "k", "v", "q_dot", "k_dot", "v_dot")
_VECTORS, _NUMBERS = ("o", "o_dot", "w", "u"), ("lse", "lse_dot", "lse_bar", "lse_bar_dot", "rest")
_OF_ROWS = dict.fromkeys(_VECTORS, 5) | dict.fromkeys(_NUMBERS, 4)  # their axes
_SCORES = ("bias", "bias_dot", "mask", "slopes", "ranges", "seed")
_READ = (*_HEADS, "w", "u", *_KNOWN, *_SCORES)  # by every kernel that walks over tiles, in this order


class Step(NamedTuple):
    """One launch, and where its tensors stand among those of the call."""

    launch: Prepared
    places: tuple[int, ...]


class Call(NamedTuple):
    """All of a call that shapes, strides, dtypes and options determine.

    Attributes:
        results: Shapes and dtypes of the cotangents, then of their tangents; None for what is not wanted.
        copied: Which of the given tensors kernels cannot read as they lie, and whether one of all along N will do.
        known: The shape of what the first launch finds out about rows.
        spans: Keys whose spans of rows are asked for; 0 if none are.
        steps: The launches; none if there is nothing to compute.
    """

    results: tuple[tuple[tuple[int, ...], torch.dtype] | None, ...]
    copied: tuple[tuple[int, bool], ...] = ()
    known: tuple[int, ...] = ()
    spans: int = 0
    steps: tuple[Step, ...] = ()


def call_of(tensors: list[Any], options: Scores, needs_first: Operands, needs_second: Operands) -> Call:
    """Work out a call.

    Args:
        tensors: What there is of `GIVEN`; only shapes, strides and dtypes count.
        options: What is done to the scores.
        needs_first: Which cotangents are wanted.
        needs_second: Which tangents of cotangents are wanted.

    Returns:
        The call.
    """
    return _Planner(dict(zip(GIVEN, tensors, strict=True)), options, needs_first, needs_second).call()


class _Planner:
    """One call while it is worked out.

    Args:
        given: The tensors by name, or None.
        options: What is done to the scores.
        needs_first: Which cotangents are wanted.
        needs_second: Which tangents of cotangents are wanted.
    """

    def __init__(self, given: dict[str, Any], options: Scores, needs_first: Operands, needs_second: Operands) -> None:
        self.options, self.needs_first, self.needs_second = options, needs_first, needs_second
        self.second = any(needs_second)
        self.copied: list[tuple[int, bool]] = []
        self.leads: dict[str, int] = {}  # elements between two along N, of what there is for rows
        fronts = dict(given)
        for name in (*_HEADS, "bias", "bias_dot", "mask"):
            fronts[name] = with_front(given[name])
        for name, axes in _OF_ROWS.items():
            t = given[name]
            fronts[name] = t if t is None or t.dim() == axes else t.unsqueeze(0)
        self.n = shared_size(*(fronts[name] for name in (*_HEADS, *_OF_ROWS, "bias", "bias_dot", "mask", "seed")))
        self.tensors = {name: self._readable(name, t) for name, t in fronts.items()}
        q, v = self.tensors["q"], self.tensors["v"]
        self.batch, self.heads, self.rows, self.dk = q.shape[1:]
        self.key_heads, self.columns, self.dv = v.shape[2:]
        self.stored = -(-self.rows // _STORED) * _STORED

    def _readable(self, name: str, t: Any) -> Any:
        """The tensor as kernels read it; noted if that is a copy."""
        if t is None:
            return None
        only_first = False
        if name in _HEADS:
            used = unit_last(t)
        elif name in _OF_ROWS:
            only_first = t.shape[0] > 1 and t.stride(0) == 0
            part = t[:1] if only_first else t
            used = part.contiguous()
            self.leads[name] = 0 if used.shape[0] == 1 else used.stride(0)
            t = part
        elif name in ("bias", "bias_dot", "mask"):
            return t
        else:
            used = t.contiguous()
        if used is not t:
            self.copied.append((_PLACES[name], only_first))
        return used

    def call(self) -> Call:
        """What the call is."""
        results = (*self._results(self.needs_first), *self._results(self.needs_second))
        if min(self.batch, self.heads, self.rows, self.columns, self.key_heads) == 0:
            return Call(results)
        known = ((4 if self.second else 2) + is_fine(self.tensors["q"]), self.n, self.batch * self.heads, self.stored)
        spans = 0 if self.options.ranges is None else self.columns
        self.rules = rule_arguments(
            self.options._replace(mask=self.tensors["mask"]), self.tensors["bias"], self.tensors["bias_dot"]
        )
        steps = (self._rows_known(), *self._by_rows(), *self._by_columns(), *self._of_bias())
        return Call(results, tuple(self.copied), known, spans, steps)

    def _results(self, needs: Operands) -> Iterator[tuple[tuple[int, ...], torch.dtype] | None]:
        """Shapes and dtypes of what is wanted."""
        for name, needed in zip(Operands._fields, needs, strict=True):
            t = self.tensors[name]
            yield ((self.n, *t.shape[1:]), t.dtype) if needed and t is not None else None

    def _rows_known(self) -> Step:
        """ℓ and D of rows, and their tangents."""
        scalar_rows = 16 if padded(self.dv) > 128 else 32
        heads, blocks = self.batch * self.heads, self.stored // scalar_rows
        numbers = (*(self.leads.get(name, 0) for name in _OF_ROWS), self.rows, self.stored, blocks, heads)
        constants = {
            "DV": self.dv,
            "BLOCK_DV": padded(self.dv),
            "BLOCK_M": scalar_rows,
            "ACC": accumulator(self.tensors["q"].dtype),
            "num_warps": 4,
            "num_stages": 1,
            "enable_fp_fusion": True,
        }
        return self._step(_delta_kernel, self.n * heads * blocks, (*_OF_ROWS, *_KNOWN), numbers, constants)

    def _by_rows(self) -> Iterator[Step]:
        """The cotangent of queries."""
        first, second = self.needs_first.q, self.needs_second.q
        if not (first or second):
            return
        config = self._config("rows", second)
        blocks = -(-self.rows // config.block_m)
        numbers = (
            *self._strides(),
            *self.rules.strides,
            *self.rules.key_list_strides,
            *self._sizes(),
            blocks,
            *self.rules.numbers,
        )
        names = (*_READ, "kv_count", "kv_index", *_wanted("q", first, second))
        constants = {**self._listed(config), "FACTS": self._facts(config, first, second), **config.options()}
        yield self._step(_rows_kernel, blocks * self.heads * self.batch * self.n, names, numbers, constants)

    def _by_columns(self) -> Iterator[Step]:
        """The cotangents of keys and values, in one launch or in two."""
        first, second = self.needs_first, self.needs_second
        sums_keys, sums_values = first.k or second.k, first.v or second.v
        head = max(self.dk, self.dv)
        apart = sums_keys and sums_values and sums_apart(head, second=bool(second.k or second.v))
        for keys, values in ((True, False), (False, True)) if apart else ((sums_keys, sums_values),):
            if keys or values:
                yield self._columns_of(bool(keys), bool(values))

    def _columns_of(self, keys: bool, values: bool) -> Step:
        """One launch by columns."""
        firsts = (self.needs_first.k and keys, self.needs_first.v and values)
        seconds = (self.needs_second.k and keys, self.needs_second.v and values)
        config = self._config("columns" if keys else "values", any(seconds))
        blocks = -(-self.columns // config.block_n)
        *outer, seed_n = self.rules.strides
        ranges = self.tensors["ranges"]
        numbers = (
            *self._strides(),
            *outer,
            0 if ranges is None or ranges.shape[0] == 1 else 2 * self.columns,
            seed_n,
            *self.rules.row_list_strides,
            *self._sizes(),
            blocks,
            *self.rules.numbers,
        )
        k_first, k_second = _wanted("k", firsts[0], seconds[0])
        v_first, v_second = _wanted("v", firsts[1], seconds[1])
        names = (*_READ, "spans", "q_count", "q_index", k_first, v_first, k_second, v_second)
        facts = self._facts(config, any(firsts), any(seconds), keys=keys, values=values)
        constants = {**self._listed(config), "FACTS": facts, **config.options()}
        return self._step(_columns_kernel, blocks * self.key_heads * self.batch * self.n, names, numbers, constants)

    def _of_bias(self) -> Iterator[Step]:
        """The cotangent of the bias: sums of dS over all that it is broadcast over."""
        first, second = self.needs_first.bias, self.needs_second.bias
        if not (first or second):
            return
        config = self._config("bias", second)
        _, batch, heads, rows, columns = self.tensors["bias"].shape
        row_blocks, column_blocks = -(-self.rows // config.block_m), -(-self.columns // config.block_n)
        tiles = (1 if rows == 1 else row_blocks) * (1 if columns == 1 else column_blocks)
        numbers = (
            *self._strides(),
            *self.rules.strides,
            *self._sizes(),
            batch,
            heads,
            row_blocks,
            column_blocks,
            *self.rules.numbers,
        )
        facts = self._facts(config, first, second)
        summed = (self.batch // batch) * (self.heads // heads) * row_blocks * column_blocks  # at most, by a program
        constants = {
            "SUMS_ROWS": rows == 1,
            "SUMS_COLUMNS": columns == 1,
            "FACTS": facts._replace(WIDE=facts.WIDE or summed // tiles >= 2**31),
            "num_warps": config.num_warps,
            "num_stages": 1,
            "enable_fp_fusion": True,
        }
        names = (*_READ, *_wanted("bias", first, second))
        yield self._step(_bias_kernel, self.n * batch * heads * tiles, names, numbers, constants)

    def _step(
        self, kernel: Any, programs: int, names: tuple[str, ...], numbers: tuple[Any, ...], constants: dict[str, Any]
    ) -> Step:
        return Step(Prepared(kernel, programs, numbers, constants), tuple(_PLACES[name] for name in names))

    def _config(self, kind: str, second: Any) -> Config:
        head = max(self.dk, self.dv)
        q, bias, blocks = self.tensors["q"], self.tensors["bias"], self.options.blocks
        return adjoint_config(head, q, bias, kind, blocks, second=bool(second))

    def _strides(self) -> tuple[int, ...]:
        """Of heads, of cotangents along N, and of what is known of rows."""
        heads = (stride for name in _HEADS for stride in head_strides(self.tensors[name]))
        return (*heads, self.leads.get("w", 0), self.leads.get("u", 0), self.stored)

    def _sizes(self) -> tuple[int, ...]:
        group = self.heads // self.key_heads
        return (self.batch, self.heads, group, self.rows, self.columns, *self.rules.window)

    def _listed(self, config: Config) -> dict[str, int]:
        """Sizes of the blocks that lists are about."""
        blocks = self.options.blocks
        return {
            "LISTED_ROWS": blocks.q_block if blocks else config.block_m,
            "LISTED_COLUMNS": blocks.kv_block if blocks else config.block_n,
        }

    def _facts(self, config: Config, first: Any, second: Any, *, keys: bool = True, values: bool = True) -> Facts:
        """What a kernel is compiled for."""
        q, k, v, q_dot, k_dot, v_dot = heads = [self.tensors[name] for name in _HEADS]
        w, u = self.tensors["w"], self.tensors["u"]
        return Facts(
            self.dk,
            padded(self.dk),
            self.dv,
            padded(self.dv),
            config.block_m,
            config.block_n,
            bool(first),
            bool(second),
            keys,
            values,
            q_dot is not None,
            k_dot is not None,
            v_dot is not None,
            w is not None,
            bool(second) and u is not None,
            capped(self.options, q),
            is_fine(q),
            self.options.left >= 0 or self.options.ranges is not None,
            is_wide(*heads, w, u, self.tensors["bias"], self.tensors["bias_dot"], self.tensors["mask"]),
            are_alike(k, v, k_dot, v_dot) and are_alike(q, q_dot),
            precision(q.dtype),
            accumulator(q.dtype),
        )


def _wanted(name: str, first: Any, second: Any) -> tuple[str, str]:
    """Names of a cotangent and of its tangent, where they are wanted."""
    return f"{name}_first" if first else "nothing", f"{name}_second" if second else "nothing"
