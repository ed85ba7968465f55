"""Takes the place of the real package's `__main__`; all else is still found there."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
