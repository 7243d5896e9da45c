"""The name under which other programs import the parameters; they are in :mod:`degaml_kedro.config.schema`."""

from degaml_kedro.config.schema import (
    BaseModelParameters,
    HubSource,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
)

__all__ = [
    "BaseModelParameters",
    "HubSource",
    "LoraParameters",
    "PromptParameters",
    "ScoringParameters",
]
