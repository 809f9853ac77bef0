"""Side-by-side measurements: attention, models, training steps, data loading; what people say "faster" about."""
