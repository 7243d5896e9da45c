"""The answer loss with derivatives of every order.

:func:`~degaml_kedro.llm.finetune.answer_loss` runs through a backward written by hand and through fused kernels:
fast, and differentiable once. A meta-gradient goes back through gradient steps, which takes Hessian-vector products.
Here the same value comes from the library's modules and elementary operations, so that ``torch.func.grad``, ``vjp``
and autograd with ``create_graph`` compose. A gradient costs a third more, a Hessian-vector product as much as three
fast gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, answer_loss


def differentiable_answer_loss(
    base: BaseModel,
    batch: Sequence[AnswerSequence],
    tensors: Mapping[str, Tensor],
    config: AdapterConfig,
) -> Tensor:
    """Mean cross-entropy of a batch's answer tokens, to be differentiated any number of times.

    Args:
        base: the frozen model.
        batch: what to compute it on.
        tensors: the adapter's tensors by PEFT's name; they may be tensors of a ``torch.func`` transform.
        config: the adapter's shape.

    Returns:
        A scalar: the value of :func:`~degaml_kedro.llm.finetune.answer_loss`.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    return answer_loss(base, batch, tensors, config, elementary=True)
