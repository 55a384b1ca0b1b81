"""Noise, schedules, solvers, guidance, BLF windows and the one denoise loop, on latents only."""
