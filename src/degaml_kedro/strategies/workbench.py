"""The old name of :mod:`degaml_kedro.strategies.context`, which other packages' strategies import."""

from degaml_kedro.strategies.context import Context as Workbench
from degaml_kedro.strategies.context import StrategyError

__all__ = ["StrategyError", "Workbench"]
