"""Strategies in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from degaml_kedro.adaptation.report import Report
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.texts import printable

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


_REASONS = (
    "Of the strategies that a paired test on the support examples prefers, it makes the right answers likeliest.",
    "The support examples cannot tell whether another is better, so it is what was best on the tasks of meta-training.",
)


def action_words(space: ActionSpace, text: str) -> str:
    """What an action does.

    Args:
        space: the actions there are.
        text: an action, as a policy wrote it: untrusted.

    Returns:
        A sentence without its full stop; one that says so where the text is no action.
    """
    try:
        action, _ = space.parse(text)
    except ActionError as error:
        return f"Not a strategy: {error}"
    told = _WORDS.get(action.family)
    if told is not None:
        try:
            return told(action.config)
        # a family of somebody else's may have taken the name
        except (KeyError, TypeError, ValueError):
            pass
    settings = ", ".join(f"{name} {_number(value)}" for name, value in action.config.items())
    summary = " ".join(space.family(action.family).summary.split())
    return f"{summary[:1].upper()}{summary[1:]}" + (f" ({settings})" if settings else "")


def strategy_words(space: ActionSpace, actions: Sequence[str]) -> str:
    """What was done to the generated adapter, in order.

    Args:
        space: the actions there are.
        actions: those that were carried out.
    """
    if not actions:
        return "Keep the generated adapter as it is"
    steps = [action_words(space, text) for text in actions]
    return "; then ".join([steps[0], *(step[:1].lower() + step[1:] for step in steps[1:])])


def explain(report: Report) -> str:
    """Why this strategy, for people: where the task stood, what was proposed, what it scored, and what was done.

    Args:
        report: of a finished adaptation; one that was read from a file is anybody's text.
    """
    lines = []
    if report.base_support is not None and report.generated_support is not None:
        scored = report.generated_support.n
        first = f"; strategies are tried on the first {scored}" if scored < report.support else ""
        lines.append(
            f"On the {report.support} support examples the base model scores {report.base_support.text}, the generated "
            f"adapter {report.generated_support.text}{first}."
        )
    if not report.tried:
        lines.append("No strategy was tried: there was no time, or nothing was proposed.")
    for tried in report.tried:
        if tried.after is None:
            came = f"could not be carried out ({tried.error})"
        else:
            verdict = "better" if tried.reward > 0 else "not better"
            if tried.reward > 0 and tried.after.right <= tried.before.right:
                verdict = "no more right answers, but surer of them"
            came = f"{tried.after.share:.2f} against {tried.before.share:.2f}, {verdict}"
        mark = "; this was carried out" if tried.executed else ""
        lines.append(f"Round {tried.round}, trial {tried.number}: {tried.words}: {came}{mark}.")
    tested = [tried for tried in report.tried if tried.decided_by is not None]
    if report.strategy and tested:
        reasons = dict.fromkeys(
            _REASONS[tried.decided_by == "fallback"] for tried in tested if tried.executed
        )
        lines.append(f"Chosen: {report.words}. {' '.join(reasons)}".rstrip())
    elif report.strategy:
        lines.append(
            f"Chosen: {report.words}. It scored best of those that beat the adapter before."
        )
    elif tested and all(tried.decided_by == "initialization" for tried in tested):
        lines.append(
            f"Chosen: {report.words}. A paired test on the support examples prefers no strategy to the generated "
            f"adapter."
        )
    elif report.tried and not any(tried.reward > 0 for tried in report.tried):
        lines.append(
            f"Chosen: {report.words}. No strategy beat the generated adapter on the support examples."
        )
    else:
        lines.append(f"Chosen: {report.words}.")
    scores = (("base", report.base), ("generated", report.generated), ("adapted", report.adapted))
    told = [f"{name} {score.text}" for name, score in scores if score is not None]
    if told:
        lines.append(f"On {report.held_out} held-out examples: {', '.join(told)}.")
    else:
        lines.append(
            "No example was held out, so nothing says how well new questions are answered."
        )
    lines.extend(f"Note: {warning}." for warning in report.warnings)
    return "\n".join(printable(line) for line in lines)


def _training(config: Mapping[str, Any], steps: str, material: str) -> str:
    order = ", in a new order every pass" if config.get("shuffle_data") else ""
    return (
        f"Train the adapter for {_count(config[steps], 'step')} on {material}, {config['batch_size']} at a time"
        f"{order} (learning rate {_number(config['learning_rate'])})"
    )


def _ttt(config: Mapping[str, Any]) -> str:
    return _training(config, "ttl_steps", "the questions alone, without their answers")


def _sft(config: Mapping[str, Any]) -> str:
    return _training(config, "steps", "the examples with their answers")


def _lora(config: Mapping[str, Any]) -> str:
    return (
        f"Mix the two halves of the adapter's rank ({_number(config['lambda'])} of the other half)"
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


def _context(config: Mapping[str, Any]) -> str:
    count = int(config["shots"])
    examples = "1 example with its answer" if count == 1 else f"{count} examples with their answers"
    told = f"Show the model up to {examples} in front of every question, {_ORDERS[config['order']]}"
    if config.get("encoder", 0) > 0:
        told += (
            "; where they have all of a question's options as answers, multiply with the probabilities of a classifier "
            f"of sentence embeddings (weight {_number(config['encoder'])})"
        )
    return told


def _ensemble(config: Mapping[str, Any]) -> str:
    weights = "equally" if config["weights"] == "equal" else "as well as it answered"
    return (
        f"Ask the best strategies that were tried so far together, {int(config['members'])} at most: their "
        f"probabilities are multiplied, each counting {weights}"
    )


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "ttt": _ttt,
    "sft": _sft,
    "lora": _lora,
    "ls": _ls,
    "tts": _tts,
    "context": _context,
    "ensemble": _ensemble,
}


def _count(value: Any, noun: str) -> str:
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
