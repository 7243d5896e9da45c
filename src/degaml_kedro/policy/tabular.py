"""The control of the policy: a logistic regression in place of a language model.

    P(reward > 0 | state, action) = σ(w · x + b)

x: the family, its configuration, and the state's numbers, which the policy's prompt has, once for all families and once
for the action's own. An action is drawn in proportion to its odds among uniform draws from the space. What the language
model is worth beside it is what it reads in questions and in what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.policy.actions import Action, ActionError, ActionSpace
from degaml_kedro.policy.prompts import state_numbers
from degaml_kedro.policy.proposers import Proposal

# uniform draws that an action is chosen from
_DRAWN = 64


@dataclass(frozen=True)
class RewardModel:
    """Log-odds of a reward: linear in named features; one without a weight weighs nothing."""

    weights: Mapping[str, float]
    intercept: float

    def log_odds(self, state: Mapping[str, float], action: Action) -> float:
        """The log-odds of a reward above 0, by the numbers of the prompt and what would be tried."""
        found = _features(state, action)
        return self.intercept + sum(self.weights.get(name, 0.0) * x for name, x in found.items())


def fit_rewards(rows: Iterable[Mapping[str, Any]], space: ActionSpace) -> RewardModel:
    """The regression on rollouts: L2 of strength 1 on standardized features.

    What is no action of the space is left out. Where all rollouts earned alike, every action is equally good.
    """
    features, rewarded = [], []
    for row in rows:
        try:
            action, _ = space.parse(str(row["action"]))
        except ActionError:
            continue
        features.append(_features(state_numbers(str(row["state"])), action))
        rewarded.append(row["reward"] > 0)
    if len(set(rewarded)) < 2:
        return RewardModel({}, 0.0)
    names = DictVectorizer(sparse=False)
    scale, regression = StandardScaler(), LogisticRegression(max_iter=1000)
    make_pipeline(names, scale, regression).fit(features, rewarded)
    # of the features as they are, so that nothing but a sum is left to compute
    weights = regression.coef_[0] / scale.scale_
    return RewardModel(
        dict(zip(names.get_feature_names_out().tolist(), weights.tolist(), strict=True)),
        float(regression.intercept_[0] - weights @ scale.mean_),
    )


@dataclass(frozen=True)
class TabularProposer:
    """Draws actions in proportion to their odds of a reward."""

    space: ActionSpace
    model: RewardModel

    def propose(self, prompts: Sequence[str], seed: int) -> list[Proposal]:
        """One draw a prompt."""
        return [self._draw(prompt, seed, row) for row, prompt in enumerate(prompts)]

    def _draw(self, prompt: str, seed: int, row: int) -> Proposal:
        rng = np.random.default_rng(derive_seed(seed, "tabular", str(row)))
        state = state_numbers(prompt)
        actions = [self.space.draw(rng) for _ in range(_DRAWN)]
        odds = np.array([self.model.log_odds(state, action) for action in actions])
        chances = np.exp(odds - odds.max())
        chosen = actions[rng.choice(len(actions), p=chances / chances.sum())]
        return Proposal(chosen.text, prompt, "tabular", 0)


def _features(state: Mapping[str, float], action: Action) -> dict[str, float]:
    """Numbers by name; learning rates by their logarithm."""
    family = action.family
    found = {**state, family: 1.0}
    found |= {f"{family} {name}": number for name, number in state.items()}
    for field, value in action.config.items():
        if isinstance(value, str):
            found[f"{family}.{field}={value}"] = 1.0
        else:
            rate = field == "learning_rate"
            found[f"{family}.{field}"] = math.log10(value) if rate else float(value)
    return found
