"""Parameter budgets: the decoder that meets one, and the surface that a sweep over budgets gives. Names are loaded lazily."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "Allocated": "space",
    "Allocation": "space",
    "Point": "surface",
    "Surface": "surface",
    "check_vocabulary": "space",
    "draw_atlas": "surface",
    "fit_surface": "surface",
    "parse_count": "space",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
