"""The blocks' linear layer, and what may take the place of its kernel.

A kernel is an array, or a pytree that computes its own product with the inputs: `LowRank` adds the
product of two thin matrices (LoRA, not merged), `Tapped` also yields the second moment of the
inputs. Being pytrees, they go through a scan over layers, `vmap`, `grad` and remat as arrays do:

    model.apply(lora.attach(params, adapters), inputs, times)
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
    """x W + b over the last axes of x: (…, *inputs) → (…, *outputs), computed in `dtype`.

    Args:
      inputs, outputs: sizes of the axes, such as `D` and `(3, H, K)`.
      products: `plain`, over the axes as they are; `flat`, as one product of two matrices (see
        `flat_product`).
      kernel_init: of the kernel as a matrix (inputs, outputs).
    """

    def __init__(
        self,
        inputs: int | tuple[int, ...],
        outputs: int | tuple[int, ...],
        *,
        use_bias: bool = True,
        products: Literal["plain", "flat"] = "plain",
        kernel_init: Any,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        inputs, outputs = (n if isinstance(n, tuple) else (n,) for n in (inputs, outputs))
        self.num_axes = len(inputs)
        self.dtype, self.product = dtype, {"plain": product, "flat": flat_product}[products]
        matrix_IO = kernel_init(rngs.params(), (math.prod(inputs), math.prod(outputs)), jnp.float32)
        self.kernel = nnx.Param(matrix_IO.reshape(*inputs, *outputs))
        # Zeros need no key; taking one gives the initial values of Flax's layers for a seed.
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), outputs)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.product(x.astype(self.dtype), self._cast(self.kernel.get_value()), self.num_axes)
        if self.bias is None:
            return y
        bias = self._cast(self.bias.get_value())
        # Broadcasting would add an axis by an operation whose transpose is a sum.
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)

    def _cast(self, kernel: Any) -> Any:
        if isinstance(kernel, Tapped):  # whose moment is a sum over many tokens, in float32
            return dataclasses.replace(kernel, base=self._cast(kernel.base))
        return jax.tree.map(lambda a: a.astype(self.dtype), kernel)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """base + a b, not added up: x base + (x a) b.

    A base of several parts side by side (queries, keys and values) has a product for each.

    Attributes:
      base: a kernel; its axes are inputs, then outputs.
      a: (P, I, R), for P parts of I inputs. b: (P, R, O), where P·O are the outputs.
    """

    base: Any
    a: jax.Array
    b: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tapped:
    """A kernel whose gradient with respect to `moment` is the second moment of its layer's inputs.

    The product does not depend on `moment`, and yet has a gradient with respect to it: XᵀX, with a
    row of X for every token. One backward pass of any scalar of the network's outputs so gives the
    moments of all layers, summed over the batch and stacked by a scan, without saving activations.

    Attributes:
      base: a kernel. moment: zeros (I, I), float32.
    """

    base: Any
    moment: jax.Array


def product(x: jax.Array, kernel: Any, num_axes: int) -> jax.Array:
    """x (…, *inputs) times a kernel (*inputs, *outputs): (…, *outputs).

    Args:
      kernel: an array, a `LowRank` or a `Tapped`. num_axes: the number of input axes.
    """
    if isinstance(kernel, LowRank):
        y = product(x, kernel.base, num_axes)
        hidden = jnp.einsum("...i,pir->...pr", _rows(x, num_axes), kernel.a)
        return y + jnp.einsum("...pr,pro->...po", hidden, kernel.b).reshape(y.shape)
    if isinstance(kernel, Tapped):
        return _tap(product(x, kernel.base, num_axes), _rows(x, num_axes), kernel.moment)
    contracted = tuple(range(x.ndim - num_axes, x.ndim)), tuple(range(num_axes))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())))


def flat_product(x: jax.Array, kernel: Any, num_axes: int) -> jax.Array:
    """`product` as one product of matrices, (B·N, I) by (I, O), and so are its gradients.

    XLA's CPU backend brings a product over two axes of tokens, such as a kernel's gradient, into
    the form of one over a single axis by copying its operands.
    """
    if isinstance(kernel, LowRank | Tapped):
        return product(x, kernel, num_axes)
    rows, outputs = _rows(x, num_axes), kernel.shape[num_axes:]
    y_RO = _matmul_rows(rows.reshape(-1, rows.shape[-1]), kernel.reshape(rows.shape[-1], -1))
    return y_RO.reshape(*rows.shape[:-1], *outputs)


def _rows(x: jax.Array, num_axes: int) -> jax.Array:
    """(…, *inputs) as (…, I)."""
    return x.reshape(*x.shape[: x.ndim - num_axes], -1)


@jax.custom_vjp
def _matmul_rows(x_RI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """x kernel; in reverse mode with a gradient of the kernel that a CPU computes fast.

    That gradient is xᵀg. XLA's CPU backend has a fast kernel (YNNPACK's) for left operands whose
    rows are contracted, and a slow one (Eigen's) where it would have to transpose them. So x is
    transposed separately, or g if that is much narrower, which costs less than the difference.
    """
    return x_RI @ kernel_IO


def _matmul_rows_forward(x_RI: jax.Array, kernel_IO: jax.Array):
    return x_RI @ kernel_IO, (x_RI, kernel_IO)


def _matmul_rows_backward(saved: tuple[jax.Array, jax.Array], grad_RO: jax.Array):
    x_RI, kernel_IO = saved
    grad_x_RI = jax.lax.dot_general(grad_RO, kernel_IO, (((1,), (1,)), ((), ())))
    if x_RI.shape[1] <= 2 * grad_RO.shape[1]:
        grad_IO = _transposed(x_RI) @ grad_RO
    else:
        grad_IO = (_transposed(grad_RO) @ x_RI).T
    return grad_x_RI.astype(x_RI.dtype), grad_IO.astype(kernel_IO.dtype)


_matmul_rows.defvjp(_matmul_rows_forward, _matmul_rows_backward)


def _transposed(x: jax.Array) -> jax.Array:
    """xᵀ in memory; without the barrier, XLA would merge it back into the product."""
    return jax.lax.optimization_barrier(x.T)


@jax.custom_vjp
def _tap(y: jax.Array, x: jax.Array, moment: jax.Array) -> jax.Array:
    return y


def _tap_forward(y: jax.Array, x: jax.Array, moment: jax.Array) -> tuple[jax.Array, jax.Array]:
    return y, x


def _tap_backward(x: jax.Array, y_bar: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    moment = jnp.einsum("...i,...j->ij", x, x, preferred_element_type=jnp.float32)
    return y_bar, jnp.zeros_like(x), moment


_tap.defvjp(_tap_forward, _tap_backward)
