"""Is this the car model that it is said to be? Helpers under the notebook series; see README.md."""

__version__ = "0.1.0"
