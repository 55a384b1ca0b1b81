"""Raw talking videos to synchronised triplets of picture, sound and text."""
