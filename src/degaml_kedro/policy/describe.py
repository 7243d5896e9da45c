"""Strategies in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        return _sentence(action.family, action.config)
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


def _sentence(family: str, config: Mapping[str, Any]) -> str:
    """What an action of one of this project's families does; a KeyError of any other."""
    rate = f"(learning rate {_number(config.get('learning_rate'))})"
    shots, encoder = int(config.get("shots", 0)), ""
    examples = "1 example with its answer" if shots == 1 else f"{shots} examples with their answers"
    shown = f"up to {examples} in front of every question"
    if config.get("encoder", 0) > 0:
        encoder = (
            "; where they have all of a question's options as answers, multiply with the probabilities of a classifier "
            f"of sentence embeddings (weight {_number(config['encoder'])})"
        )
    match family:
        case "ttt" | "sft":
            steps = config["ttl_steps" if family == "ttt" else "steps"]
            material = "questions alone, without" if family == "ttt" else "examples with"
            order = ", in a new order every pass" if config.get("shuffle_data") else ""
            return (
                f"Train the adapter for {_steps(steps)} on the {material} their answers, {config['batch_size']} at a "
                f"time{order} {rate}"
            )
        case "lora":
            share = _number(config["lambda"])
            return f"Mix the two halves of the adapter's rank ({share} of the other half)"
        case "ls":
            each = "all questions" if config.get("scope") == "task" else "every question"
            return (
                f"Add a vector to the model's last hidden states, one for {each}, made in {_steps(config['times'])} "
                f"from the question itself {rate}"
            )
        case "tts":
            count = int(config["num_prompt_batches"])
            if count == 1:
                return "Ask the one adapter that there is"
            together = _VOTES[config["method"]]
            return f"Ask {count} adapters, generated from different prompts: {together}"
        case "context":
            return f"Show the model {shown}, {_ORDERS[config['order']]}{encoder}"
        case "written":
            behind = f"; show the model {shown}" if shots else ""
            return (
                "Write an adapter from the examples with their answers, in one pass"
                f"{behind}{encoder}"
            )
        case "ensemble":
            weights = "equally" if config["weights"] == "equal" else "as well as it answered"
            return (
                f"Ask the best strategies that were tried so far together, {int(config['members'])} at most: their "
                f"probabilities are multiplied, each counting {weights}"
            )
    raise KeyError(family)


def _steps(count: Any) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
