"""Mean velocities (MeanFlow: Geng et al. 2025, arXiv:2505.13447), for samples in one to four steps.

Along the path dx/dt = v(x, t), u(x, r, t) = (x_t - x_r) / (t - r) is the mean velocity between r
and t, so that one evaluation takes any step: x_r = x_t - (t - r) u. Differentiating (t - r) u by t
gives

    u = v - (t - r) du/dt,   du/dt = v ∂u/∂x + ∂u/∂t                              (eqs. 6 and 8)

whose right side, without a gradient, is the network's target. At r = t it is flow matching.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array]


def mean_velocity(
    network: Callable[[Arrays, Arrays, jax.Array], Arrays],
    x: Arrays,
    times: Mapping[str, jax.Array],
    interval_B: jax.Array,
    velocities: Arrays,
    rate_B: jax.Array,
) -> tuple[Arrays, Arrays]:
    """A network's mean velocities and their targets, by one forward-mode derivative.

    Args:
      network: `network(x, network times, interval)` gives u by noisy segment.
      x: noisy segments at t, leaves (B, …). times: network times (B,).
      interval_B: t - r.
      velocities: v of the noisy segments, shaped like x: dx/dt of each example's own path, of which
        the mean over all is that of the flow; or guided ones.
      rate_B: of the network times, per unit of t.

    Returns:
      (u, targets); no gradient flows into the targets.
    """
    tangents = (
        velocities,
        dict.fromkeys(times, rate_B),
        jnp.ones_like(interval_B),  # r is fixed
    )
    outputs, rates = jax.jvp(network, (x, dict(times), interval_B), tangents)
    targets = {}
    for name, velocity in velocities.items():
        interval = interval_B.reshape((-1,) + (1,) * (velocity.ndim - 1))
        targets[name] = jax.lax.stop_gradient(velocity - interval * rates[name])
    return outputs, targets
