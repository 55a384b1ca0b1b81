"""From speech samples to encoder features on a fixed grid: resampling, Whisper, frame features."""
