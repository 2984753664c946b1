"""Galaxy spectra compressed, ranked, explained and turned into posteriors.

Names are loaded when first used (SPEC 1), so that `import spectral_core` needs no torch.
"""

import lazy_loader as _lazy

__version__ = "0.1.0"

_HOME = {
    "core": ["ConfigError", "DataError", "Flag", "ModelFileError", "RunError", "SpectralError", "SpectrumError"],
    "manifest": ["fetch", "list_datasets", "read_manifest"],
    "spectra.wavelength": ["Grid", "air_to_vacuum", "rebin", "redshift_wave", "vacuum_to_air"],
    "spectra.surveys": ["BOSS", "DESI", "SDSS", "Survey", "get_survey"],
    "spectra.container": ["Batch", "Spectra", "concatenate", "group_positions"],
    "spectra.preprocessing": ["normalise", "preprocess", "select", "telluric_mask"],
    "spectra.lines": ["LINES", "bpt_class", "d4000n", "whan_class"],
    "spectra.labels": ["label_galaxies"],
    "spectra.linefit": ["fit_lines"],
    "spectra.restframe": ["PAT2022", "rest_sample", "to_rest"],
    "spectra.stacking": ["stack"],
    "spectra.store": ["open_store", "write_store"],
    "spectra.regrid": ["to_survey"],
    "archives.nsa": ["nsa_photometry", "read_nsa"],
    "archives.coadd": ["merge_arms", "read_arms"],
    "archives.desi": ["read_desi", "write_desi"],
    "archives.properties": ["join_properties"],
    "archives.redrock": ["read_redrock"],
    "archives.remote": ["desi_url", "query_desi", "read_desi_stars"],
    "archives.targets": ["bgs_selection", "mws_selection", "target_bit"],
    "archives.sdss": ["query_sdss", "read_sdss", "sdss_url", "write_sdss"],
    "simulate.ssp": ["load_ssp"],
    "simulate.mock": ["matched_mock", "mock_survey", "reobserve"],
    "simulate.milkyway": ["mock_stars"],
    "simulate.oddities": ["plant_desi", "plant_desi_all"],
    "simulate.anomalies": ["GROUPS", "plant", "plant_all"],
    "simulate.photosurvey": ["mock_photometry"],
    "simulate.priors": ["Prior"],
    "simulate.provabgs": ["load_provabgs"],
    "inference.catalogue": ["posterior", "posterior_catalogue"],
    "inference.mcmc": ["ensemble_sample"],
    "inference.npe": ["fit_posterior", "load_posterior"],
    "inference.reweight": ["weighted_draws"],
    "models.autoencoder": ["AutoencoderConfig", "RedshiftAutoencoder"],
    "models.similarity": ["consistency_loss", "fidelity_loss", "similarity_loss"],
    "models.pae": ["DenseAutoencoder", "PAEConfig"],
    "models.gis": ["GIS", "GISConfig"],
    "models.vae": ["VAEConfig", "VariationalAutoencoder"],
    "models.gaps": ["GapFiller"],
    "models.flows": ["FlowConfig", "MaskedAutoregressiveFlow", "SplineFlow"],
    "train": ["Stage", "fit"],
    "predict": ["chi2", "encode", "latent_covariance", "log_prob", "reconstruct", "rest_spectrum"],
    "pretrained": ["load", "load_model", "save_model"],
    "analysis.embedding": ["fit_umap"],
    "analysis.attribution": ["attribute"],
    "analysis.dimension": ["choose_dimension"],
    "analysis.latents": ["principal_rotation"],
    "analysis.stargalaxy": ["StarGalaxy"],
    "analysis.templatefit": ["fit_templates"],
    "analysis.outliers": ["TailCalibration", "rank_outliers"],
    "figures.spectra": ["plot_outliers", "plot_spectrum"],
    "scoring": ["score"],
    "chapters": ["run_chapter"],
}

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["archives", "models", "simulate", "spectra", "analysis", "inference", "figures"],
    submod_attrs=_HOME,
)
