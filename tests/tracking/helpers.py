"""Places that MLflow cannot use."""

from __future__ import annotations

import socket


def nobody_listens() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]
