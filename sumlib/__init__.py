"""Uncertainty-aware fine-tuning of segmentation foundation models (SUM, NeurIPS 2024).

The notebooks argue, this library computes. Imports go one way: `paths` and `config` at the bottom, then `masks`, then
one module per idea of the paper (`losses`, `uncertainty`, `sampler`, `metrics`), then `model` and what is built on it.
"""

__version__ = "0.1.0"
