"""Which tensors ops take: dense ones, whose elements lie at strides, and nothing else in their place."""

from typing import Any

from torch import Tensor, strided
from torch.fx import Proxy


def check_dense(function: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not dense, of which PyTorch would complain in the midst of a computation, or never.

    Args:
        function: Who asks.
        name: The argument.
        tensor: What came.

    Raises:
        TypeError: If it is not dense.
    """
    if tensor.layout is strided and not tensor.is_nested:  # a nested tensor may call itself strided
        return
    if tensor.is_nested:
        got, way_out = "a nested tensor", "use .to_padded_tensor(0.0), or its components one by one"
    else:
        got, way_out = f"one of layout {tensor.layout}", "use .to_dense()"
    raise TypeError(f"{function}: {name} must be a dense tensor (layout torch.strided), got {got}; {way_out}.")


def check_operand(function: str, name: str, value: Any) -> None:
    """Refuse what comes in the place of a dense tensor in a call of an op.

    Args:
        function: The op.
        name: The argument.
        value: What came; None takes no part, nor does what stands for a tensor, as a proxy does.

    Raises:
        TypeError: If it is no tensor, or not a dense one.
    """
    if isinstance(value, Tensor):
        check_dense(function, f"argument {name!r}", value)
    elif value is not None and not hasattr(type(value), "__torch_function__"):
        raise TypeError(f"{function}: argument {name!r} must be a tensor, got {kind_of(value)}.")


def kind_of(value: Any) -> str:
    """What came in the place of a tensor, and how it becomes one.

    Args:
        value: What came, no tensor.

    Returns:
        Its type, and the function that makes a tensor of it, if there is one.
    """
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return "ndarray; use torch.from_numpy()"
    if isinstance(value, Proxy):
        return (
            "Proxy of torch.fx, which sees calls through the module torch_jvpvjp.ops and of names that were given to "
            "torch.fx.wrap()"
        )
    return f"{kind.__name__}; use torch.tensor()" if isinstance(value, list | tuple | int | float) else kind.__name__
