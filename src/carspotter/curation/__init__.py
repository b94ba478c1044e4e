"""Which photos are fit to learn from: duplicates, quality, doubts, and what people decided."""
