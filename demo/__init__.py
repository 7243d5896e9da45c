"""The page over :mod:`degaml_kedro.session`: paste examples, adapt, look, ask, take the adapter along."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHIPPED_LABEL = "Shipped with degaml-kedro"


def _limit(default: float, told: str) -> Any:
    """A limit, which is an option of ``python -m demo`` too."""
    return field(default=default, metadata={"help": told})


@dataclass(frozen=True)
class DemoSettings:
    """How the page is started; what each limit bounds is said beside it.

    Attributes:
        port: 0 for any free one.
        pairs: what is offered: a label and a source for :meth:`degaml_kedro.session.Session.load` (None: the pair
            that ships with the package).
        tracking_uri: MLflow's, where the comparison is read from; None where there is none.
        ray: address of the Ray cluster that adaptations go to; None for this machine.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    pairs: tuple[tuple[str, str | None], ...] = ((SHIPPED_LABEL, None),)
    tracking_uri: str | None = None
    ray: str | None = None
    max_examples: int = _limit(200, "examples of one adaptation, held-out ones included")
    max_characters: int = _limit(1_000_000, "characters of pasted text")
    max_question_tokens: int = _limit(
        1024, "tokens of a question with its options, asked or in an example"
    )
    # an adaptation that is not done after twice that is stopped
    max_seconds: int = _limit(120, "seconds of trying strategies")
    max_models: int = _limit(5, "adapted models kept of each visitor; the oldest goes first")
    max_models_total: int = _limit(100, "adapted models kept of all visitors")
    concurrency: int = _limit(1, "adaptations at once; of several, each in a process of its own")
    queue_size: int = _limit(32, "adaptations that may wait")
    session_ttl: int = _limit(1800, "seconds after which an idle visitor is forgotten")
    grace: int = _limit(90, "seconds after which a visitor without a page or a client is forgotten")
