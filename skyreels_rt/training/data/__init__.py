"""Synthetic data: drawn portraits that speak synthesised sentences, with ground truth."""
