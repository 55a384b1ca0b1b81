"""What a run needs around the models: active layers, timings, step reuse."""
