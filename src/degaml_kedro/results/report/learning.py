"""What the parts of DeGAML learned: strategies by task, the policy, and generators."""

from __future__ import annotations

import pandas as pd

from degaml_kedro.results.generator_figure import generator_figure
from degaml_kedro.results.policy_figure import policy_figure, strategy_map
from degaml_kedro.results.report.document import Block, Picture, Section, code, paragraph
from degaml_kedro.results.report.findings import Findings
from degaml_kedro.results.report.words import listed

_MOST_HEALTH_FIGURES = 6


def strategies(findings: Findings) -> Section:
    """Which strategy was proposed for which task."""
    key, title = "strategies", "Strategies by task"
    frame = _table(findings, "strategies")
    if frame.empty:
        nothing = paragraph(
            "No strategies were recorded; ",
            code("kedro run --pipeline evaluate"),
            " with ",
            code("degaml"),
            " or ",
            code("random_policy"),
            " among the methods makes them.",
        )
        return Section(key, title, (nothing,))
    picture = Picture(
        "strategies",
        "Families of strategies by task, all seeds together: the color is a family's share of the task's proposals; a "
        "star marks what was executed.",
        strategy_map(frame, "Strategies by task"),
    )
    return Section(key, title, (picture,))


def policy(findings: Findings) -> Section:
    """How the policy learned."""
    key, title = "policy", "How the policy learned"
    frame = _table(findings, "policy_rollouts")
    if frame.empty:
        nothing = paragraph(
            "No rollouts of a policy's training were recorded; ",
            code("kedro run --pipeline policy"),
            " with ",
            code("degaml"),
            " among the methods makes them.",
        )
        return Section(key, title, (nothing,))
    picture = Picture(
        "policy",
        "Reward rate with its 95 % interval, entropy of what was chosen, and the share of each family over iterations "
        "of training, all seeds together.",
        policy_figure(frame, "Policy"),
    )
    return Section(key, title, (picture,))


def generator(findings: Findings) -> Section:
    """How generators learned, and how far what they make is from checkpoints."""
    key, title = "generator", "Generator health"
    pairs = []
    for run in findings.runs.runs:
        steps = run.tables.get("generator_steps", pd.DataFrame())
        health = run.tables.get("generator_health", pd.DataFrame())
        for variant in _variants(steps, health):
            pairs.append((run, variant, _of_variant(steps, variant), _of_variant(health, variant)))
    if not pairs:
        nothing = paragraph(
            "No generator was recorded; ",
            code("kedro run --pipeline generator"),
            " makes one where a method needs it.",
        )
        return Section(key, title, (nothing,))
    blocks: list[Block] = []
    if len(pairs) > _MOST_HEALTH_FIGURES:
        first = pairs[0][0]
        pairs = [pair for pair in pairs if pair[0] is first]
        others = listed(run.name for run in findings.runs.runs[1:])
        blocks.append(
            paragraph(
                f"Figures of {first.name}; those of {others} are beside their results, in ",
                code("*.generator.html"),
                ".",
            )
        )
    for number, (run, variant, steps, health) in enumerate(pairs):
        name = f"Generator {variant}, {run.name}" if variant else f"Generator, {run.name}"
        blocks.append(
            Picture(
                f"generator-{number + 1}",
                f"{name}: losses, learning rate, errors and norm ratios by module and layer at the last check, and "
                f"error and accuracy by task over steps.",
                generator_figure(steps, health, name),
            )
        )
    return Section(key, title, tuple(blocks))


def _variants(*frames: pd.DataFrame) -> list[str]:
    found: dict[str, None] = {}
    for frame in frames:
        if len(frame):
            found |= dict.fromkeys(map(str, frame.get("variant", [""])))
    return list(found)


def _of_variant(frame: pd.DataFrame, variant: str) -> pd.DataFrame:
    return frame[frame["variant"].map(str) == variant] if "variant" in frame else frame


def _table(findings: Findings, name: str) -> pd.DataFrame:
    """One of the runs' other tables, of all runs."""
    frames = [run.tables[name] for run in findings.runs.runs if len(run.tables.get(name, ()))]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
