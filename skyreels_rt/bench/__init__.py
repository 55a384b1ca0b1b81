"""Measurements behind `skyreels-rt bench`."""
