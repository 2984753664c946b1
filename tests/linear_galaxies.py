"""Galaxies whose magnitudes are linear in a uniform log mass and normal parameters: the posterior is a known normal."""

import torch

SIGMA = torch.tensor([0.05, 0.02, 0.02, 0.02, 0.03], dtype=torch.float64)
COLOURS = [[0.9, 0.2, -0.3], [0.4, -0.2, 0.1], [0.2, 0.1, 0.1], [0.1, 0.2, 0.2], [0.0, -0.1, 0.3]]
SLOPES = torch.tensor([[-2.5, *row] for row in COLOURS], dtype=torch.float64)
ZERO = 42.0


class Model:
    "Magnitudes of theta = (log M, three shapes); `n` counts the SEDs that were asked for."

    def __init__(self, slopes=SLOPES):
        self.slopes, self.n = slopes, 0

    def magnitudes(self, theta, z):
        self.n += len(theta)
        return ZERO + theta @ self.slopes.T.to(theta)


class Prior:
    "log M uniform from 7 to 12.5, shapes standard normal."

    def from_free(self, free, z):
        return torch.cat([7 + 5.5 * torch.special.ndtr(free[:, :1]), free[:, 1:]], 1)

    def to_free(self, theta, z):
        return torch.cat([torch.special.ndtri((theta[:, :1] - 7) / 5.5), theta[:, 1:]], 1)


def observe(n, seed=0):
    "True theta (n, 4), magnitudes (n, 5) with noise, their errors, and redshifts."
    random = torch.Generator().manual_seed(seed)
    mass = 9 + 2 * torch.rand(n, 1, generator=random, dtype=torch.float64)
    theta = torch.cat([mass, torch.randn(n, 3, generator=random, dtype=torch.float64)], 1)
    mags = ZERO + theta @ SLOPES.T + SIGMA * torch.randn(n, 5, generator=random, dtype=torch.float64)
    return theta, mags, SIGMA.expand(n, 5).clone(), torch.full((n,), 0.03, dtype=torch.float64)


def posterior(mags, used=slice(None)):
    "Mean (4,) and covariance (4, 4) of theta given the bands `used` of one galaxy's magnitudes (5,)."
    weighted = SLOPES[used].T / SIGMA[used] ** 2
    covariance = torch.linalg.inv(weighted @ SLOPES[used] + torch.diag(torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)))
    return covariance @ (weighted @ (mags[used] - ZERO)), covariance


def draw(mags, n, seed=0, used=slice(None)):
    "Exact draws (n, 4)."
    mean, covariance = posterior(mags, used)
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + noise @ torch.linalg.cholesky(covariance).T


def log_evidence(mags, sigma=SIGMA):
    "ln p(x) of magnitudes (g, 5): the mass integrated over its prior, far from whose ends it must be."
    covariance = torch.diag(sigma**2) + SLOPES[:, 1:] @ SLOPES[:, 1:].T
    inverse, ones = torch.linalg.inv(covariance), torch.ones(5, dtype=torch.float64)
    off = mags - ZERO
    off = off - ((off @ inverse @ ones) / (ones @ inverse @ ones))[:, None]  # what a shift of all bands can not explain
    chi2 = torch.einsum("gb,bc,gc->g", off, inverse, off)
    norm = 0.5 * torch.logdet(2 * torch.pi * covariance) - 0.5 * torch.log(2 * torch.pi / (ones @ inverse @ ones))
    return -0.5 * chi2 - norm - torch.tensor(2.5 * 5.5, dtype=torch.float64).log()
