"""Training of the embedded model: synthetic data, losses, curriculum, distillation."""
