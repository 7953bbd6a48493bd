"""The samplers that a search file may name, with what each proposes. Their code is in search/proposals/samplers.py."""

from __future__ import annotations

SAMPLERS: dict[str, str] = {
    "auto": "gp while trials are few, then tpe; with conditions or several objectives, tpe from the start",
    "gp": "Gaussian processes",
    "tpe": "tree-structured Parzen estimators",
    "cmaes": "CMA-ES",
    "random": "values at random",
    "grid": "every combination, once",
    "qmc": "a Sobol sequence, which fills the space evenly",
}
"""Description by `sampler` of a search file."""
