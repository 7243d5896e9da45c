"""A trained generator with its policy: what a session needs, from a folder, a run, MLflow or the hub."""

from degaml_kedro.pairs.loading import SHIPPED, load_trained_pair
from degaml_kedro.pairs.pair import PairError, PairSettings, TrainedPair, read_pair, save_pair

__all__ = [
    "SHIPPED",
    "PairError",
    "PairSettings",
    "TrainedPair",
    "load_trained_pair",
    "read_pair",
    "save_pair",
]
