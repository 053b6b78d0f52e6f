"""Uncertainty-aware fine-tuning of segmentation foundation models (SUM, NeurIPS 2024).

The notebooks argue, this library computes. Imports go one way, from `pipeline` down to `base`; the order
stands in pyproject.toml. The paper's ideas are one file each: `uncertainty`, `losses`, `sampler`, `metrics`.
"""

__version__ = "0.1.0"
