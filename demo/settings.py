"""What the page is started with: where it listens, what it offers, and how much a visitor may ask for."""

from __future__ import annotations

from dataclasses import dataclass

SHIPPED_LABEL = "Shipped with degaml-kedro"


@dataclass(frozen=True)
class DemoSettings:
    """How the page is started.

    Attributes:
        host: the address to listen on; loopback unless it is to be reached from outside.
        port: the port; 0 for any free one.
        pairs: what is offered: a label and a source for :meth:`degaml_kedro.session.Session.load` (None: the pair
            that ships with the package).
        max_examples: of one adaptation, held-out ones included.
        max_characters: of pasted text.
        max_question_characters: of a question that is typed, its options included.
        max_seconds: of trying strategies; an adaptation that is not done after twice that is stopped.
        concurrency: adaptations at once.
        queue_size: adaptations that may wait.
        tracking_uri: MLflow's, where the comparison is read from; None where there is none.
        session_ttl: seconds after which a visitor who does nothing is forgotten.
        max_models: adapted models kept of one visitor; the oldest goes first.
        max_models_total: adapted models kept of all visitors; the oldest goes first.
        grace: seconds that a page whose connection was lost may take to come back, before it is forgotten.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    pairs: tuple[tuple[str, str | None], ...] = ((SHIPPED_LABEL, None),)
    max_examples: int = 200
    max_characters: int = 1_000_000
    max_question_characters: int = 2000
    max_seconds: float = 120
    concurrency: int = 1
    queue_size: int = 32
    tracking_uri: str | None = None
    session_ttl: float = 1800
    max_models: int = 5
    max_models_total: int = 100
    grace: float = 20
