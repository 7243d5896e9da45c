"""Strategies in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from degaml_kedro.policy.actions import ActionError, ActionSpace

_VOTES = {
    "avg_sim_score": "each question goes to the adapter whose prompts are nearest to it on average",
    "avg_prompt_embed": "each question goes to the adapter whose mean prompt is nearest to it",
    "max_confidence": "the most confident one answers",
    "majority_vote": "they vote",
    "sum_logprobs": "their probabilities are multiplied",
}
_ORDERS = {
    "given": "the first ones, in the order given",
    "random": "in a random order",
    "nearest": "those most like it, the most alike last",
}


def describe_action(space: ActionSpace, text: str) -> str:
    """What an action does: a sentence without its full stop; one that says so where the text is no action."""
    try:
        action, _ = space.parse(text)
    except ActionError as error:
        return f"Not a strategy: {error}"
    try:
        return _SENTENCES[action.family](action.config)
    # a family of somebody else's, which may have taken the name of one of ours
    except (KeyError, TypeError, ValueError):
        settings = ", ".join(f"{name} {_number(value)}" for name, value in action.config.items())
        summary = " ".join(space.family(action.family).summary.split())
        return f"{summary[:1].upper()}{summary[1:]}" + (f" ({settings})" if settings else "")


def describe_strategy(space: ActionSpace, actions: Sequence[str]) -> str:
    """What the actions that were carried out did to the generated adapter, in order."""
    if not actions:
        return "Keep the generated adapter as it is"
    steps = [describe_action(space, text) for text in actions]
    return "; then ".join([steps[0], *(step[:1].lower() + step[1:] for step in steps[1:])])


def _training(config: Mapping[str, Any], steps: int, material: str) -> str:
    order = ", in a new order every pass" if config.get("shuffle_data") else ""
    return (
        f"Train the adapter for {_count(steps, 'step')} on {material}, {config['batch_size']} at a time"
        f"{order} (learning rate {_number(config['learning_rate'])})"
    )


def _ls(config: Mapping[str, Any]) -> str:
    each = "one for all questions" if config.get("scope") == "task" else "one for every question"
    return (
        f"Add a vector to the model's last hidden states, {each}, made in {_count(config['times'], 'step')} from the "
        f"question itself (learning rate {_number(config['learning_rate'])})"
    )


def _tts(config: Mapping[str, Any]) -> str:
    count = int(config["num_prompt_batches"])
    if count == 1:
        return "Ask the one adapter that there is"
    return f"Ask {count} adapters, generated from different prompts: {_VOTES[config['method']]}"


def _written(config: Mapping[str, Any]) -> str:
    shown = f"; show the model up to {_shown(config)}" if config.get("shots", 0) else ""
    return f"Write an adapter from the examples with their answers, in one pass{shown}{_encoder(config)}"


def _shown(config: Mapping[str, Any]) -> str:
    count = int(config["shots"])
    examples = "1 example with its answer" if count == 1 else f"{count} examples with their answers"
    return f"{examples} in front of every question"


def _encoder(config: Mapping[str, Any]) -> str:
    if not config.get("encoder", 0) > 0:
        return ""
    return (
        "; where they have all of a question's options as answers, multiply with the probabilities of a classifier of "
        f"sentence embeddings (weight {_number(config['encoder'])})"
    )


def _ensemble(config: Mapping[str, Any]) -> str:
    weights = "equally" if config["weights"] == "equal" else "as well as it answered"
    return (
        f"Ask the best strategies that were tried so far together, {int(config['members'])} at most: their "
        f"probabilities are multiplied, each counting {weights}"
    )


_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "ttt": lambda c: _training(c, c["ttl_steps"], "the questions alone, without their answers"),
    "sft": lambda c: _training(c, c["steps"], "the examples with their answers"),
    "lora": lambda c: (
        f"Mix the two halves of the adapter's rank ({_number(c['lambda'])} of the other half)"
    ),
    "ls": _ls,
    "tts": _tts,
    "context": lambda c: f"Show the model up to {_shown(c)}, {_ORDERS[c['order']]}{_encoder(c)}",
    "written": _written,
    "ensemble": _ensemble,
}


def _count(value: Any, noun: str) -> str:
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
