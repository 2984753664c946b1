"""The long training of chapter 5: the shipped posterior network, and whether it is calibrated on galaxies it has never seen.

    python benchmarks/sedflow_calibration.py           # writes sedflow_calibration.md beside itself and the network below assets/

Needs the data set `provabgs` (mirror). The rule was written down before the run: for each of the twelve parameters the
Kolmogorov-Smirnov p of the percentile scores of 1000 mock galaxies, which neither training nor any choice has used, is above
0.01/12, and the coverage at 68 and 95 % is within 0.05 of nominal.
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from page import processor, table

from spectral_core.core import assets_dir
from spectral_core.inference.calibration import calibration_table, conditional_table, percentile_scores
from spectral_core.inference.npe import N_CONTEXT, Posterior, PosteriorConfig, context, fit_posterior
from spectral_core.simulate.histories import PARAMETERS, parameters
from spectral_core.simulate.photosurvey import PhotometricSample, mock_photometry
from spectral_core.simulate.priors import Prior
from spectral_core.simulate.provabgs import load_provabgs

CONFIG = PosteriorConfig(n_hidden=192, n_component=10, n_member=2, n_noise=4, n_epoch=10, batch_size=2048)
N_TRAIN, N_VALID, N_TEST, N_DRAW = 500_000, 20_000, 1000, 2000
SEEDS = 11, 12, 13  # of training, validation and test galaxies


def judged(posterior: Posterior, test: PhotometricSample) -> tuple[Table, Table]:
    "How the truths lie in their posteriors, per parameter, and against each feature of the photometry that is not constant."
    seen = test.mags, test.sigma, test.state, test.z
    draws = posterior.sample(*seen, N_DRAW)
    scores = percentile_scores(parameters(draws).numpy(force=True), parameters(test.theta).numpy())
    told = context(*seen).numpy()
    moving = [k for k in range(N_CONTEXT) if len(np.unique(told[:, k])) > 2]
    return calibration_table(scores, PARAMETERS), conditional_table(scores, told[:, moving], PARAMETERS, [str(k) for k in moving])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--assets", type=Path, default=assets_dir() / "sedflow")
    parser.add_argument("--run", type=Path, help="folder of checkpoints, from which a stopped run goes on")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    start, cpu = time.monotonic(), time.process_time()
    model, prior = load_provabgs("matrix"), Prior()
    sizes = zip((N_TRAIN, N_VALID, N_TEST), SEEDS)
    train, valid, test = (mock_photometry(n, seed=seed, model=model, prior=prior) for n, seed in sizes)
    simulated = time.monotonic()
    posterior = fit_posterior(train, valid, CONFIG, run=given.run, device=given.device)
    trained, cpu = time.monotonic(), time.process_time() - cpu
    seen = test.mags, test.sigma, test.state, test.z
    held_out = posterior.log_prob_free(test.free[:, None].float(), *seen).mean().item()
    result, apart = judged(posterior, test)
    passed = bool(result.meta["passed"]) and max(np.abs(result[f"coverage_{n}"] - n / 100).max() for n in (68, 95)) <= 0.05
    card = {
        "data": f"{N_TRAIN} mock galaxies: published PROVABGS model, errors of the NASA-Sloan Atlas; seed {SEEDS[0]}",
        "command": "python benchmarks/sedflow_calibration.py", "seed": CONFIG.seed,
        "held-out log_prob": held_out, "passed": passed,
        "smallest KS p": float(np.min(result["p"])),
        "not for": "redshifts outside 0.002-0.06, bands other than SDSS ugriz, nebular emission, active nuclei",
    }  # fmt: skip
    posterior.save(given.assets, card, half=True)
    titles = ["parameter", "KS p", "shift, σ", "width, σ", "coverage at 68 %", "coverage at 95 %"]
    formats = ("p", ".3f"), ("shift", "+.3f"), ("width", "+.3f"), ("coverage_68", ".3f"), ("coverage_95", ".3f")
    rows = [f"| {row['parameter']} | {' | '.join(format(row[name], f) for name, f in formats)} |" for row in result]
    versions = ", ".join(f"{name} {version(name)}" for name in ("spectral-core", "numpy", "torch"))
    where = torch.cuda.get_device_name() if next(posterior.density.parameters()).is_cuda else processor()
    given.out.write_text(f"""# The posterior network of chapter 5

`{card["command"]}`; {versions}; {where}, {torch.get_num_threads()} thread(s).

{N_TRAIN} galaxies simulated in {simulated - start:.0f} s; {CONFIG.n_member} networks of {CONFIG.n_block} × {CONFIG.n_hidden}
units and {CONFIG.n_component} components trained on {CONFIG.n_noise} observations of each, {CONFIG.n_epoch} times, in
{trained - simulated:.0f} s ({cpu:.0f} s of processor time for both). Held-out log-probability {held_out:.3f} per galaxy, in
coordinates in which that of the prior is {-5.5 * (1 + np.log(2 * np.pi)):.2f}.

Percentile scores of {N_TEST} mock galaxies with {N_DRAW} draws each, without weights. The rule, written before the run: KS p
above 0.01/12 = {0.01 / 12:.5f} for each parameter, coverage within 0.05. **{"Passed" if passed else "Not passed"}.**

{table(titles, rows)}

Do the scores depend on the photometry? {len(apart)} rank correlations with its features: smallest p {np.min(apart["p"]):.2g},
where {1 / len(apart):.2g} is to be expected of the smallest of so many.
""", encoding="utf-8")


if __name__ == "__main__":
    main()
