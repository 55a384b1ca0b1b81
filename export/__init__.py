"""Exporters of the engine, imported as :mod:`skyreels_rt.export`."""

if __name__ != "skyreels_rt.export":
    raise ImportError("This folder is the package skyreels_rt.export; install the project first.")
