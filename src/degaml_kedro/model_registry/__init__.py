"""Generators, policies and adapted states as registered MLflow models, and the way back to our own objects.

A model is a folder of our own files (safetensors, PEFT folders, JSON) with MLflow's description around it. There is no
pickle and no code in it: MLflow's ``loader_module`` names the module ``serving`` here. Loading reads the folder as
what anybody may have put there: no path leads out of it, and nothing but safetensors and JSON is opened.

Registered names are ``degaml-generator``, ``degaml-policy`` and ``degaml-adapter-<task>``.
"""

from degaml_kedro.model_registry.folders import ModelFolder, RegistryError, find_models
from degaml_kedro.model_registry.loading import (
    Pair,
    load_adapter,
    load_generator,
    load_pair,
    load_policy,
)
from degaml_kedro.model_registry.registering import register_models

__all__ = [
    "ModelFolder",
    "Pair",
    "RegistryError",
    "find_models",
    "load_adapter",
    "load_generator",
    "load_pair",
    "load_policy",
    "register_models",
]
