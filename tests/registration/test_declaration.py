"""What a declaration refuses, and what its messages say."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from example_ops import fresh_name, waves
from torch import Tensor
from torch.types import Number

from torch_jvpvjp import differentiable_op


def square(x: Tensor) -> Tensor:
    return x * x


def test_name_must_have_a_namespace() -> None:
    with pytest.raises(ValueError, match=r"'namespace::name', got 'square'"):
        differentiable_op("square")


def test_a_declaration_without_its_name_says_how_it_is_written() -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(ValueError, match=r"write @differentiable_op\('mylib::plain'\)"):
        differentiable_op(plain)  # pyright: ignore[reportArgumentType]


def test_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mutates_args=\('x',\).*return a new tensor"):
        differentiable_op(fresh_name("inplace"), mutates_args=("x",))


def test_missing_annotation_is_refused() -> None:
    def unannotated(x, y: float = 1.0) -> Tensor:  # type: ignore[no-untyped-def]
        return x * y

    with pytest.raises(TypeError, match=r"every parameter and the return of the reference need an annotation"):
        differentiable_op(fresh_name("unannotated"))(unannotated)


def test_list_of_tensors_is_refused() -> None:
    def concatenate(xs: list[Tensor]) -> Tensor:
        return torch.cat(xs)

    with pytest.raises(TypeError, match=r"'xs' is a list of tensors.*separate arguments"):
        differentiable_op(fresh_name("lists"))(concatenate)


def test_non_tensor_output_is_refused() -> None:
    def count(x: Tensor) -> int:
        return x.numel()

    with pytest.raises(TypeError, match=r"every output must be a Tensor.*got a return annotation that means SymInt"):
        differentiable_op(fresh_name("count"))(count)


def test_defaults_that_a_schema_cannot_hold_are_defaults_all_the_same() -> None:
    @differentiable_op(fresh_name("defaults"))
    def bounded(
        x: Tensor,
        note: str = "it's, [so",
        bound: float = float("inf"),
        powers: Sequence[int] = (1, 2),
        *,
        sign: int = 1,
    ) -> Tensor:
        assert note == "it's, [so"
        return sign * sum(x**p for p in powers).clamp(max=bound)

    x = torch.tensor([0.5, 3.0])
    torch.testing.assert_close(bounded(x), x + x**2)
    torch.testing.assert_close(bounded(x, bound=2.0, sign=-1), -(x + x**2).clamp(max=2.0))
    torch.testing.assert_close(torch.func.grad(lambda t: bounded(t, powers=[3]).sum())(x), 3 * x**2)
    torch.testing.assert_close(torch.func.jvp(bounded, (x,), (x,))[1], x * (1 + 2 * x))


def test_only_functions_are_decorated() -> None:
    with pytest.raises(TypeError, match=r"decorate a plain function"):
        differentiable_op(fresh_name("klass"))(torch.nn.Linear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"non_differentiable": ("z",)}, r"names 'z', but the tensor arguments are \['x'\]"),
        ({"non_differentiable_outputs": (1,)}, r"names output 1, but the visible outputs are 0 to 0"),
        ({"residuals": ("r",)}, r"residuals names 1 outputs \('r',\), but the reference returns 1 in all"),
    ],
    ids=["input", "output", "residual"],
)
def test_options_that_name_what_does_not_exist_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        differentiable_op(fresh_name("options"), **options)(square)


def test_second_rules_are_refused() -> None:
    op = waves(("jvp", "vjp", "vmap", "kernel"))
    with pytest.raises(ValueError, match=r"there is a JVP rule already"):
        op.jvp(lambda primals, tangents: None)
    with pytest.raises(ValueError, match=r"there is a VJP rule already"):
        op.vjp(lambda cotangents, inputs: None)
    with pytest.raises(ValueError, match=r"there is a vmap rule already"):
        op.vmap(lambda info, in_dims, *args: None)
    with pytest.raises(ValueError, match=r"device 'cpu' has a kernel already.*choose inside it"):
        op.kernel("cpu")(lambda *args: None)
    op.fake(lambda x, w, limit: (x, x))
    with pytest.raises(ValueError, match=r"there is a fake already"):
        op.fake(lambda x, w, limit: (x, x))
    op.autocast(torch.float32)
    with pytest.raises(ValueError, match=r"there is a autocast policy already"):
        op.autocast("lower")


def test_unknown_devices_are_refused() -> None:
    op = differentiable_op(fresh_name("devices"))(square)
    with pytest.raises(ValueError, match=r"unknown device type 'gpu'; PyTorch knows 'cpu', 'cuda'"):
        op.kernel("gpu")
    with pytest.raises(ValueError, match=r"'meta' tensors have no data; use @devices_\d+\.fake"):
        op.kernel("meta")
    with pytest.raises(TypeError, match=r"name the device types"):
        op.kernel()
    with pytest.raises(TypeError, match=r"name the device types"):
        op.kernel(square)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["kernel", "jvp", "vjp", "vmap", "fake"])
def test_what_is_no_function_is_refused_at_once(what: str) -> None:
    op = differentiable_op(fresh_name("functions"))(square)
    register: Any = op.kernel("cpu") if what == "kernel" else getattr(op, what)
    with pytest.raises(TypeError, match=rf"functions_\d+\.{what}: the {what} must be a function, got int"):
        register(3)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(op))(torch.ones(2)), torch.full((2,), 2.0))


def test_unknown_autocast_policy_is_refused() -> None:
    op = differentiable_op(fresh_name("policy"))(square)
    with pytest.raises(ValueError, match=r"'lower', 'promote' or a floating-point dtype, got 'half'"):
        op.autocast("half")


def test_rules_of_rules_need_the_rule() -> None:
    op = differentiable_op(fresh_name("bare"))(square)
    with pytest.raises(ValueError, match=r"there is no JVP rule to stand on; write the formula first"):
        op.jvp.kernel("cpu")
    with pytest.raises(ValueError, match=r"there is no VJP rule to stand on"):
        op.vjp.jvp(lambda primals, tangents: None)


def test_rules_with_the_wrong_parameters_are_refused_at_once() -> None:
    op = differentiable_op(fresh_name("arity"))(square)
    with pytest.raises(TypeError, match=r"must take \(primals, tangents\), got \(x\)"):
        op.jvp(lambda x: x)
    with pytest.raises(TypeError, match=r"must take \(cotangents, inputs\) or \(cotangents, inputs, outputs\)"):
        op.vjp(lambda g: g)
    with pytest.raises(TypeError, match=r"`unsaved` is an option of a VJP rule only"):
        op.jvp(lambda primals, tangents: None, unsaved=("x",))
    with pytest.raises(TypeError, match=r"`shape_only` is an option of a VJP rule only"):
        op.jvp(lambda primals, tangents: None, shape_only=lambda inputs, needs: ("x",))
    with pytest.raises(TypeError, match=r"unsaved names \['z'\]; the tensor inputs are \['x'\]"):
        op.vjp(lambda cotangents, inputs: None, unsaved=("z",))

    def asks_too_much(cotangents: object, inputs: object, *, outputs: object) -> None: ...

    with pytest.raises(TypeError, match=r"asks for keyword-only \['outputs'\]"):
        op.vjp(asks_too_much)


def test_rules_with_the_wrong_number_of_results_say_what_to_return() -> None:
    x = torch.randn(3)
    op = differentiable_op(fresh_name("results"))(square)
    op.jvp(lambda primals, tangents: primals.x)
    with pytest.raises(
        ValueError, match=r"must return the pair \(outputs, output tangents\), got a tensor of shape \(3,\)"
    ):
        torch.func.jvp(op, (x,), (x,))
    op = differentiable_op(fresh_name("results"))(square)
    op.jvp(lambda primals, tangents: (primals.x * 2, (tangents.x, tangents.x)))
    with pytest.raises(ValueError, match=r"one tangent for each differentiable output \['y'\], got 2 value\(s\)"):
        torch.func.jvp(op, (x,), (x,))
    op = differentiable_op(fresh_name("results"))(square)
    op.vjp(lambda cotangents, inputs: (cotangents.y, cotangents.y))
    with pytest.raises(ValueError, match=r"one cotangent for each differentiable input \['x'\], got 2 value\(s\)"):
        torch.func.grad(lambda t: op(t).sum())(x)
    op = differentiable_op(fresh_name("results"))(square)
    op.vjp(lambda cotangents, inputs: cotangents.y.sum())
    with pytest.raises(ValueError, match=r"must return for x a cotangent: .* \(3,\) .*, got a tensor of shape \(\)"):
        torch.func.grad(lambda t: op(t).sum())(x)
    op = differentiable_op(fresh_name("results"))(square)
    op.kernel("cpu")(lambda x: (x + 1, x + 2))
    with pytest.raises(ValueError, match=r"must return 1 tensor\(s\) \(y\), as the reference does, got 2 value\(s\)"):
        op(x)
    op = differentiable_op(fresh_name("results"))(square)
    op.vmap(lambda info, in_dims, x: x + 1)
    with pytest.raises(ValueError, match=r"the vmap rule must return \(outputs, out_dims\), got Tensor"):
        torch.func.vmap(op)(x)
    op = differentiable_op(fresh_name("results"))(square)
    op.vmap(lambda info, in_dims, x: ((x + 1, x + 2), (0, 0)))
    with pytest.raises(ValueError, match=r"must return 1 output\(s\) and as many out_dims, got 2 and 2"):
        torch.func.vmap(op)(x)


def test_a_tangent_of_another_shape_is_refused() -> None:
    op = differentiable_op(fresh_name("tangent_shape"))(square)
    op.jvp(lambda primals, tangents: (primals.x * primals.x, tangents.x.sum()))
    x = torch.randn(3)
    with pytest.raises(ValueError, match=r"must return y_dot of shape \(3,\) .*, got shape \(\)"):
        torch.func.jvp(op, (x,), (x,))
    number = differentiable_op(fresh_name("number"))(square)
    number.jvp(lambda primals, tangents: (primals.x * primals.x, 0.0))
    with pytest.raises(ValueError, match=r"a tensor or None for the tangent of y, got float"):
        torch.func.jvp(number, (x,), (x,))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "formula", [lambda x: x, lambda x: x.view(-1), lambda x: x.t()], ids=["the input", "a view", "a transpose"]
)
def test_aliases_are_refused_when_they_happen(formula, requires_grad: bool) -> None:
    def alias(x: Tensor) -> Tensor:
        return formula(x)

    op = differentiable_op(fresh_name("alias"))(alias)
    with pytest.raises(ValueError, match=r"output 'y' is a view of, or the same as, input 'x'.*return \.clone\(\)"):
        op(torch.randn(2, 2, requires_grad=requires_grad))
    with pytest.raises(ValueError, match=r"output 'y' is a view of, or the same as, input 'x'"):
        op.overload(torch.randn(2, 2))


def test_outputs_that_alias_each_other_are_refused() -> None:
    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        return y, y

    with pytest.raises(ValueError, match=r"output 'y1' is a view of, or the same as, output 'y0'"):
        differentiable_op(fresh_name("twins"))(twice)(torch.randn(2))


def test_an_integer_output_must_be_declared() -> None:
    def index(x: Tensor) -> Tensor:
        return x.argmax(-1)

    with pytest.raises(TypeError, match=r"dtype torch.int64.*non_differentiable_outputs=\(0,\)"):
        differentiable_op(fresh_name("index"))(index)(torch.randn(2, 3))


def test_calls_that_do_not_fit_name_the_arguments() -> None:
    op = waves(())
    with pytest.raises(TypeError, match=r"takes \(x, w, limit\); missing \['w'\]"):
        op(torch.randn(2))
    with pytest.raises(TypeError, match=r"takes \(x, w, limit\); got 2 positional argument\(s\) and \['bound'\]"):
        op(torch.randn(2), torch.randn(2), bound=1.0)


def test_frozen_inputs_refuse_derivatives_instead_of_dropping_them() -> None:
    @differentiable_op(fresh_name("frozen"), non_differentiable=("table",))
    def op(x: Tensor, table: Tensor) -> Tensor:
        return x * table

    x, table = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(torch.func.grad(lambda t: op(t, table).sum())(x), table)
    with pytest.raises(NotImplementedError, match=r"'table' is declared non-differentiable but has requires_grad=True"):
        op(x, table.requires_grad_())
    with pytest.raises(NotImplementedError, match=r"'table' is declared non-differentiable but has a tangent.*detach"):
        torch.func.jvp(lambda t: op(x, t), (table.detach(),), (x,))
    with pytest.raises(NotImplementedError, match=r"'table' is declared non-differentiable"):
        torch.func.grad(lambda t: op(x, t).sum())(table.detach())


@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_mkldnn], ids=["sparse", "mkldnn"])
def test_tensors_that_are_not_dense_are_refused(convert: Callable[[Tensor], Tensor]) -> None:
    op = waves(())
    with pytest.raises(TypeError, match=r"::waves\w*: argument 'w' must be a dense tensor .*; use \.to_dense\(\)"):
        op(torch.ones(3), convert(torch.ones(3)))


def test_tensors_on_two_devices_are_refused_before_a_kernel_sees_them() -> None:
    op = waves(("kernel",))
    with pytest.raises(ValueError, match=r"must be on one device, got w on meta and another on cpu"):
        op(torch.randn(2), torch.randn(2, device="meta"))


def test_a_name_in_the_place_of_names_is_refused() -> None:
    with pytest.raises(TypeError, match=r"non_differentiable must be a sequence of names, got 'x'; write \('x',\)"):
        differentiable_op(fresh_name("names"), non_differentiable="x")
    with pytest.raises(TypeError, match=r"non_differentiable_outputs must be a sequence of positions, got 1"):
        differentiable_op(fresh_name("positions"), non_differentiable_outputs=1)  # pyright: ignore[reportArgumentType]


def test_annotations_may_be_strings_beside_defaults_that_no_schema_holds() -> None:
    surroundings: dict[str, Any] = {"Tensor": Tensor, "__name__": "strings"}
    exec("def clamp(x: 'Tensor', bound: 'float' = float('inf')) -> 'Tensor':\n return x.clamp(max=bound)", surroundings)
    op = differentiable_op(fresh_name("strings"))(surroundings["clamp"])
    assert op.signature.schema("clamp") == "clamp(Tensor x, float bound) -> Tensor"
    torch.testing.assert_close(op(torch.ones(2)), torch.ones(2))


def test_what_is_no_tensor_device_or_number_is_refused() -> None:
    @differentiable_op(fresh_name("kinds"))
    def kinds(self: Tensor, device: torch.device, scale: Number = 2) -> Tensor:  # noqa: N805
        return (self * scale).to(device)

    x = torch.ones(2)
    torch.testing.assert_close(kinds(self=x, device="cpu", scale=2.5), 2.5 * x)
    assert list(inspect.signature(kinds).parameters) == ["self", "device", "scale"]
    with pytest.raises(TypeError, match=r"argument 'self' must be a tensor, got None"):
        kinds(None, "cpu")
    with pytest.raises(TypeError, match=r"argument 'device' must be a torch.device, got 3.5"):
        kinds(x, 3.5)
    with pytest.raises(TypeError, match=r"argument 'scale' must be a number, got 'a'"):
        kinds(x, "cpu", "a")


def test_a_vmap_rule_must_say_where_the_batch_axis_is() -> None:
    op = differentiable_op(fresh_name("batched"))(square)
    op.vmap(lambda info, in_dims, x: (x * x, 0))  # whatever in_dims says
    with pytest.raises(ValueError, match=r"for y a tensor whose out_dim 0 has the batch size 3, got shape \(2, 3\)"):
        torch.func.vmap(op, in_dims=1)(torch.randn(2, 3))


def test_symbolic_trace_keeps_ops_whole() -> None:
    op, two = differentiable_op(fresh_name("traced"))(square), waves(())

    def function(x: Tensor, w: Tensor) -> Tensor:
        y0, y1 = two(op(x), w)
        return y0 * y1

    traced = torch.fx.symbolic_trace(function)
    assert {op.overload, two.overload} <= {node.target for node in traced.graph.nodes}
    x, w = torch.randn(2), torch.randn(2)
    torch.testing.assert_close(traced(x, w), function(x, w))


def test_what_is_no_tensor_is_refused_with_the_way_to_one() -> None:
    @differentiable_op(fresh_name("shifted"))
    def shifted(x: Tensor, by: Tensor | None = None) -> Tensor:
        return x * 2 if by is None else x + by

    name = shifted.qualname
    with pytest.raises(
        TypeError, match=rf"{name}: argument 'x' must be a tensor, got ndarray; use torch.from_numpy\(\)"
    ):
        shifted(torch.ones(2).numpy())
    for value, kind in (([1.0], "list"), (1.0, "float")):
        with pytest.raises(TypeError, match=rf"argument 'by' must be a tensor, got {kind}; use torch.tensor\(\)"):
            shifted(torch.ones(2), value)


def test_a_method_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match="a method cannot be an op, for 'self' is no tensor; declare a function"):

        class Spring:
            @differentiable_op(fresh_name("force"))
            def force(self, x: Tensor) -> Tensor:
                return -x
