"""Reading and writing checkpoints: safetensors only, strict names, maps between layouts."""
