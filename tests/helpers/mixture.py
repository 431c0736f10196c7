"""A mixture of Gaussians, whose exact denoiser is known in closed form at any noise level.

With data p(x0) = sum_k w_k N(m_k, s_k^2 I), the noisy x = alpha x0 + sigma eps has the density
sum_k w_k N(alpha m_k, (alpha^2 s_k^2 + sigma^2) I), from which the exact denoiser follows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.diffusion.process import Denoised

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[1.2, 0.4], [-1.0, 0.9], [-0.3, -1.3]])
SCALES = np.array([0.35, 0.25, 0.45])


def _components(x, alpha, sigma):
    """For x (..., 2): x less the means (..., 3, 2), variances (3,), log weights (..., 3)."""
    means, scales = jnp.asarray(MEANS, x.dtype), jnp.asarray(SCALES, x.dtype)
    difference = x[..., None, :] - alpha * means
    variance = alpha**2 * scales**2 + sigma**2
    log_weight = jnp.log(jnp.asarray(WEIGHTS, x.dtype)) - jnp.log(variance)
    return difference, variance, log_weight - jnp.sum(difference**2, -1) / (2 * variance)


def log_density(x, alpha, sigma):
    """log p(x) up to a constant; x (..., 2) -> (...)."""
    return jax.nn.logsumexp(_components(x, alpha, sigma)[2], axis=-1)


def expected_x0(x, alpha, sigma):
    """E[x0 | x]; x (..., 2)."""
    difference, variance, log_weight = _components(x, alpha, sigma)
    gain = alpha * jnp.asarray(SCALES, x.dtype) ** 2 / variance
    x0 = jnp.asarray(MEANS, x.dtype) + gain[:, None] * difference
    return jnp.sum(jax.nn.softmax(log_weight)[..., None] * x0, axis=-2)


def expected_eps(x, alpha, sigma):
    """E[eps | x]; x (..., 2)."""
    difference, variance, log_weight = _components(x, alpha, sigma)
    eps = sigma / variance[:, None] * difference
    return jnp.sum(jax.nn.softmax(log_weight)[..., None] * eps, axis=-2)


def denoiser(schedule):
    """The exact `denoise(x, t)` of a state that is a pytree with leaves (B, 2)."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return Denoised(
            jax.tree.map(lambda leaf: expected_x0(leaf, alpha, sigma), x),
            jax.tree.map(lambda leaf: expected_eps(leaf, alpha, sigma), x),
        )

    return denoise


def samples(key, count):
    """Samples of the data, (count, 2) float32."""
    which, noise = jax.random.split(key)
    component = jax.random.choice(which, len(WEIGHTS), (count,), p=jnp.asarray(WEIGHTS))
    normal = jax.random.normal(noise, (count, 2))
    return (
        jnp.asarray(MEANS, jnp.float32)[component]
        + normal * jnp.asarray(SCALES, jnp.float32)[component, None]
    )


def mean():
    """The mean of the data, (2,)."""
    return WEIGHTS @ MEANS


def covariance():
    """The covariance of the data, (2, 2)."""
    centred = MEANS - mean()
    return np.einsum("k,ki,kj->ij", WEIGHTS, centred, centred) + WEIGHTS @ SCALES**2 * np.eye(2)


def moments(x, alpha=1.0, sigma=0.0):
    """The share of each component, the mean and the covariance of samples x (B, 2)."""
    share = jax.nn.softmax(_components(x, alpha, sigma)[2]).mean(0)
    return np.asarray(share), np.asarray(x.mean(0)), np.cov(np.asarray(x).T)
