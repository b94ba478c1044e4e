"""From a model to the photo check."""
