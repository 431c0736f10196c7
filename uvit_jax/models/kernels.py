"""What may stand where a kernel stands, and the two hooks by which Flax's layers take it.

A layer of `layers.py` whose kernel is an array is Flax's own. In its place a `LowRank` adds the
product of two thin matrices (LoRA, unmerged), and a `Tapped` also tells of the layer's inputs. Both
are pytrees, so that a scan over layers, `vmap`, `grad` and remat go through them as through arrays:

    model.apply(lora.attach(params, adapters), inputs, times)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.nnx.nn.dtypes import canonicalize_dtype

Options = tuple[tuple[str, Any], ...]  # of `jax.lax.dot_general`, by name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """base + a b, never added up: x base + (x a) b.

    A base of several parts side by side (queries, keys and values) has a product for each.

    Attributes:
      base: a kernel, or what stands for one; its axes are inputs, then outputs.
      a: (P, I, R), P parts, I inputs. b: (P, R, O), where P·O are the outputs.
    """

    base: Any
    a: jax.Array
    b: jax.Array

    def __getitem__(self, index: Any) -> "LowRank":
        """What a layer reads of its parameter: `kernel[...]`, all of it."""
        return self

    def dot_general(self, x: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
        """As `jax.lax.dot_general(x, kernel, dimension_numbers)`."""
        y = dot_general(x, self.base, dimension_numbers, **options)
        x = _flat(x, dimension_numbers)
        h = jnp.einsum("...i,pir->...pr", x, self.a)
        return y + jnp.einsum("...pr,pro->...po", h, self.b).reshape(y.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tapped:
    """A kernel, and where the second moment of its layer's inputs comes out.

    The result of the product does not depend on `moment`, and yet has a gradient by it: XᵀX, with a
    row of X for every token. So one backward pass of any scalar of the network's outputs gives
    the moments of all layers, added up over the batch and stacked by a scan, and keeps no
    activations for them.

    Attributes:
      base: as of `LowRank`. moment: zeros (I, I), float32.
    """

    base: Any
    moment: jax.Array

    def __getitem__(self, index: Any) -> "Tapped":
        """As of `LowRank`."""
        return self

    def dot_general(self, x: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
        """As `jax.lax.dot_general(x, kernel, dimension_numbers)`."""
        y = dot_general(x, self.base, dimension_numbers, **options)
        return _tap(y, _flat(x, dimension_numbers), self.moment)


def dot_general(x: jax.Array, kernel: Any, dimension_numbers: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` that knows what may stand for a kernel."""
    if isinstance(kernel, LowRank | Tapped):
        return kernel.dot_general(x, dimension_numbers, **options)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)


def promote_dtype(args: tuple[Any, ...], /, *, dtype: Any = None) -> tuple[Any, ...]:
    """Flax's `promote_dtype` that knows what may stand for a kernel."""
    dtype = canonicalize_dtype(*jax.tree.leaves(args), dtype=dtype)

    def cast(value: Any) -> Any:
        if isinstance(value, Tapped):  # whose moment is a sum over many tokens
            return Tapped(base=cast(value.base), moment=value.moment)
        if isinstance(value, LowRank):
            return jax.tree.map(cast, value)
        return None if value is None else jnp.asarray(value, dtype)

    return tuple(map(cast, args))


def flat_dot_general(x: jax.Array, kernel: Any, dimension_numbers: Any, **options: Any):
    """`dot_general` as one product of matrices, (B·N, I) by (I, O), whose gradients are such, too.

    A product over two axes of tokens, as a kernel's gradient is, XLA's CPU backend brings into the
    form of one over a single axis by copies of its operands.
    """
    if isinstance(kernel, LowRank | Tapped):
        return kernel.dot_general(x, dimension_numbers, **options)
    x, outputs = _flat(x, dimension_numbers), kernel.shape[len(dimension_numbers[0][0]) :]
    rows, kernel_IO = x.reshape(-1, x.shape[-1]), kernel.reshape(x.shape[-1], -1)
    y = _product(rows, kernel_IO, tuple(sorted(options.items())))
    return y.reshape(*x.shape[:-1], *outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_RI: jax.Array, kernel_IO: jax.Array, options: Options) -> jax.Array:
    """x kernel; in reverse mode with a gradient by the kernel that a CPU computes fast.

    That gradient is xᵀg. XLA's CPU backend has a fast kernel (YNNPACK's) for left operands whose
    rows are contracted, and a slow one (Eigen's) where it would have to transpose them. So x is
    transposed apart, or g where that is much the narrower, which costs less than the difference.
    """
    return _matmul(x_RI, kernel_IO, options)


def _product_forward(x_RI: jax.Array, kernel_IO: jax.Array, options: Options):
    return _matmul(x_RI, kernel_IO, options), (x_RI, kernel_IO)


def _product_backward(options: Options, saved: tuple[jax.Array, jax.Array], grad_RO: jax.Array):
    x_RI, kernel_IO = saved
    grad_x_RI = jax.lax.dot_general(grad_RO, kernel_IO, (((1,), (1,)), ((), ())), **dict(options))
    if x_RI.shape[1] <= 2 * grad_RO.shape[1]:
        grad_IO = _matmul(_transposed(x_RI), grad_RO, options)
    else:
        grad_IO = _matmul(_transposed(grad_RO), x_RI, options).T
    return grad_x_RI.astype(x_RI.dtype), grad_IO.astype(kernel_IO.dtype)


_product.defvjp(_product_forward, _product_backward)


def _matmul(a: jax.Array, b: jax.Array, options: Options) -> jax.Array:
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), **dict(options))


def _transposed(x: jax.Array) -> jax.Array:
    """xᵀ in memory; without the barrier, XLA would put it back into the product."""
    return jax.lax.optimization_barrier(x.T)


PRODUCTS = {"plain": dot_general, "flat": flat_dot_general}


def hooks(products: str) -> dict[str, Any]:
    """The arguments of `nnx.Linear` and `nnx.LinearGeneral` that make them take such kernels.

    `products`: a name of `PRODUCTS`, how the layers' own products are written.
    """
    return dict(dot_general=PRODUCTS[products], promote_dtype=promote_dtype)


def _flat(x: jax.Array, dimension_numbers: Any) -> jax.Array:
    """Inputs (…, I), whose last axes are those that the kernel contracts."""
    (contracted, _), _ = dimension_numbers
    return x.reshape(*x.shape[: x.ndim - len(contracted)], -1)


@jax.custom_vjp
def _tap(y: jax.Array, x: jax.Array, moment: jax.Array) -> jax.Array:
    return y


def _tap_forward(y: jax.Array, x: jax.Array, moment: jax.Array) -> tuple[jax.Array, jax.Array]:
    return y, x


def _tap_backward(x: jax.Array, y_bar: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    moment = jnp.einsum("...i,...j->ij", x, x, preferred_element_type=jnp.float32)
    return y_bar, jnp.zeros_like(x), moment


_tap.defvjp(_tap_forward, _tap_backward)
