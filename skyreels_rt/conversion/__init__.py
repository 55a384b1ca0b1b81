"""Turns official model folders, with their pickled encoders, into folders that the engine loads."""
