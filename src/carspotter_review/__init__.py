"""The local page on which a person decides which photos are fit to learn from."""
