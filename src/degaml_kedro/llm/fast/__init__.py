"""The fast way to compute a model: optional, for models recognised by their configuration, verified at load.

Every model can go the general way (:mod:`~degaml_kedro.llm.general`). This package is the only other one, and the rest
of the project asks it one question, :func:`fast_decoder`, when a model is loaded. In it are packed attention
(:mod:`~degaml_kedro.llm.fast.attention`), the fused decoder (:mod:`~degaml_kedro.llm.fast.fused`) and the verification
of both (:mod:`~degaml_kedro.llm.fast.decoder`).
"""

from degaml_kedro.llm.fast.decoder import FastDecoder, fast_decoder

__all__ = ["FastDecoder", "fast_decoder"]
