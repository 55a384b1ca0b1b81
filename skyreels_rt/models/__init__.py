"""The networks: video transformer with audio adapter, video VAEs, text and image encoders."""
