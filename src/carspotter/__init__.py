"""Helpers of the notebook series on telling car models apart; see README.md."""

from importlib import import_module

__version__ = "0.2.0"
__all__ = ["Experiment", "Study", "load_or_train"]

# Imported when first used: `import carspotter` stays quick and loads no framework.
_HOMES = {
    "Experiment": "carspotter.models.experiments",
    "Study": "carspotter.paths",
    "load_or_train": "carspotter.models.runs",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'carspotter' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
