"""A density in ten dimensions that is known exactly: six narrow, rotated normals, then sheared.

Variances along the axes of a component run from 0.01 to 10 (condition number 1000) in random directions, means are drawn
from N(0, 3²); then coordinates 6 to 10 are moved by a tenth of the squares of coordinates 1 to 5, which changes no volume.
A single normal misses it by eleven nats; flows and Gaussianisations come closer, and some much closer than others.
"""

import numpy as np
from scipy.special import logsumexp
from scipy.stats import ortho_group

N_FEATURES, N_COMPONENTS, SHEAR = 10, 6, 0.1
SIZES = {"train": 50_000, "valid": 20_000, "test": 20_000}

_random = np.random.default_rng(0)
MEANS = _random.normal(0, 3, (N_COMPONENTS, N_FEATURES))
SCALES = np.logspace(-1, 0.5, N_FEATURES)  # standard deviations
ROTATIONS = ortho_group.rvs(N_FEATURES, size=N_COMPONENTS, random_state=_random)


def _shear(x: np.ndarray, sign: int) -> np.ndarray:
    first, second = np.split(x, 2, axis=1)
    return np.concatenate([first, second + sign * SHEAR * first**2], axis=1)


def sample(n: int, seed: int) -> np.ndarray:
    "`n` draws (n, 10) in float64."
    random = np.random.default_rng([0, seed])
    which = random.integers(N_COMPONENTS, size=n)
    noise = SCALES * random.standard_normal((n, N_FEATURES))
    return _shear(MEANS[which] + np.einsum("nij,nj->ni", ROTATIONS[which], noise), 1)


def log_prob(x: np.ndarray) -> np.ndarray:
    "The exact log density (n,) at `x` (n, 10)."
    away = _shear(np.asarray(x, dtype=np.float64), -1)[:, None] - MEANS
    z = np.einsum("nci,cij->ncj", away, ROTATIONS) / SCALES
    norm = np.log(N_COMPONENTS) + np.log(SCALES).sum() + 0.5 * N_FEATURES * np.log(2 * np.pi)
    return logsumexp(-0.5 * np.square(z).sum(2), axis=1) - norm


def datasets() -> dict[str, np.ndarray]:
    "The three sets of the benchmark, 50,000, 20,000 and 20,000 points, in float32."
    return {name: sample(n, seed).astype(np.float32) for seed, (name, n) in enumerate(SIZES.items())}
