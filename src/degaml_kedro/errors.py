"""The name under which other programs import the project's error."""

from degaml_kedro.common.errors import DegamlError

__all__ = ["DegamlError"]
