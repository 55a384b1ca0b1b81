"""What a run needs around the models: devices, active layers, memory, timings."""
