"""The old name of :mod:`degaml_kedro.strategies.observations`, which other packages' strategies import."""

from degaml_kedro.strategies.observations import Candidate, Candidates, Labeled, Nothing, Prompts

__all__ = ["Candidate", "Candidates", "Labeled", "Nothing", "Prompts"]
