"""An adapted state's folder as a Kedro dataset."""

from __future__ import annotations

from degaml_kedro.io.local import LocalDataset
from degaml_kedro.strategies.state import STATE_FILE, AdaptedState, load_state, save_state


class AdaptedStateDataset(LocalDataset[AdaptedState, AdaptedState]):
    """Where adaptation ended: a PEFT folder a member, ``state.json`` and, where there are any, its tensors.

    Example catalog entry:
        ``"{task}.{method}.state": {type: degaml_kedro.io.states.AdaptedStateDataset, filepath:
        data/06_models/{task}.{method}.state}``
    """

    def load(self) -> AdaptedState:
        """Read the state.

        Raises:
            StateError: a file is missing, damaged or of another format.
        """
        return load_state(self._path)

    def save(self, data: AdaptedState) -> None:
        """Write the state, whole or not at all."""
        save_state(data, self._path)

    def _exists(self) -> bool:
        return self._holds(STATE_FILE)
