"""What MLflow calls when it loads and asks a registered model: ``mlflow.pyfunc.load_model(uri).predict(...)``.

MLflow's ``MLmodel`` names this module as the model's loader, so that there is no code in the model: MLflow's models
from code would run a file that lies in its folder. To have the objects themselves, use
``degaml_kedro.tracking.registry.load_generator`` and its like.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from pydantic import ValidationError

from degaml_kedro.adapters.adapter import Adapter, load_peft_folder, save_peft_folder
from degaml_kedro.errors import DegamlError
from degaml_kedro.generator.generator import Generator, load_generator
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.parameters import (
    BaseModelParameters,
    EncoderParameters,
    Parameters,
    PolicyParameters,
    PromptParameters,
    ScoringParameters,
)
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.proposers import PolicyProposer
from degaml_kedro.strategies.answering import answer_questions
from degaml_kedro.strategies.generated import question_embedder
from degaml_kedro.strategies.state import STATE_FILE, AdaptedState, Member, load_state
from degaml_kedro.strategies.workbench import Workbench
from degaml_kedro.tasks.example import Question, make_example

GENERATOR, POLICY, ADAPTER = "generator", "policy", "adapter"
ABOUT_FILE = "degaml.json"
CONTENT = "content"
FORMAT = 1
_TEXTS = ("kind", "base_model", "base_model_fingerprint")


class RegistryError(DegamlError):
    """A model that cannot be registered, loaded or used."""


def signature(kind: str) -> ModelSignature:
    """What a kind of model reads and answers.

    Args:
        kind: ``generator``, ``policy`` or ``adapter``.
    """
    prompts = pd.DataFrame({"prompt": ["Which day follows Monday?"]})
    if kind == GENERATOR:
        # a PEFT folder on the machine that serves
        made = pd.DataFrame({"adapter": ["a folder"]})
        return infer_signature(prompts, made, {"seed": 0, "folder": ""})
    if kind == POLICY:
        return infer_signature(prompts, pd.DataFrame({"action": ["{}"]}), {"seed": 0})
    questions = {"question": ["Which day follows Monday?"], "options": [["Friday", "Tuesday"]]}
    answers = {"answer": ["Tuesday"], "index": [1]}
    return infer_signature(pd.DataFrame(questions), pd.DataFrame(answers))


def read_about(data: Path, where: str) -> Mapping[str, Any]:
    """A model's description, checked.

    Args:
        data: the folder of our files.
        where: for messages.

    Raises:
        RegistryError: it is missing, damaged or of another format.
    """
    path = data / ABOUT_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RegistryError(f"{where}: its {ABOUT_FILE} cannot be read ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RegistryError(
            f"{where}: its {ABOUT_FILE} is not of format {FORMAT}, which this version reads; register the model again"
        )
    if not all(isinstance(about.get(name), str) for name in _TEXTS):
        raise RegistryError(f"{where}: its {ABOUT_FILE} does not say what the model is")
    settings = about.get("settings")
    return {**about, "settings": settings if isinstance(settings, dict) else {}}


def read_state(content: Path) -> AdaptedState:
    """An adapted state's folder, or a PEFT folder as a state of one member."""
    if (content / STATE_FILE).is_file():
        return load_state(content)
    return AdaptedState((Member(load_peft_folder(content)),))


def _load_pyfunc(path: str) -> ServedGenerator | ServedPolicy | ServedAdapter:
    """MLflow's entry: the model in our folder."""
    data = Path(path)
    about = read_about(data, path)
    content = data / CONTENT
    if about["kind"] == GENERATOR:
        return ServedGenerator(load_generator(content), about)
    if about["kind"] == POLICY:
        return ServedPolicy(load_peft_folder(content), about)
    if about["kind"] == ADAPTER:
        return ServedAdapter(read_state(content), about)
    raise RegistryError(f"{path}: this version knows no model of the kind '{about['kind']}'")


@dataclass(frozen=True, eq=False)
class ServedGenerator:
    """Prompts of one task in, one adapter out.

    Attributes:
        generator: makes adapters.
        about: the model's description.
    """

    generator: Generator
    about: Mapping[str, Any]

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Write the adapter of a prompt batch.

        Args:
            model_input: unlabelled prompts of one task, in the column ``prompt``; where there are more than the
                generator reads, some are drawn.
            params: ``seed`` of that draw, and ``folder``, where the adapter is written; a new temporary one
                otherwise.

        Returns:
            One row: the PEFT folder's path, on this machine, in the column ``adapter``.
        """
        asked = params or {}
        encoder = _setting(self.about, "encoder", EncoderParameters)
        prompts = [str(text) for text in pd.DataFrame(model_input)["prompt"]]
        embeddings = load_prompt_encoder(encoder).encode(
            prompts, encoder.tokens, encoder.batch_tokens
        )
        adapter = self.generator.sample(embeddings, int(asked.get("seed") or 0))
        place = asked.get("folder") or tempfile.mkdtemp(prefix="degaml-adapter-")
        save_peft_folder(adapter, Path(str(place)))
        return pd.DataFrame({"adapter": [str(place)]})


@dataclass(frozen=True, eq=False)
class ServedPolicy:
    """What the policy reads in, the strategy that it proposes out.

    Attributes:
        adapter: the policy.
        about: the model's description.
    """

    adapter: Adapter
    about: Mapping[str, Any]

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Propose a strategy a prompt.

        Args:
            model_input: prompts as ``policy/prompts.py`` writes them, in the column ``prompt``.
            params: ``seed`` of the draws.

        Returns:
            The strategies as JSON texts, in the column ``action``.
        """
        policy = _setting(self.about, "policy", PolicyParameters)
        pilot = load_base_model(policy.model) if policy.model else _base_model(self.about)
        space = ActionSpace.of(policy.families)
        proposer = PolicyProposer(pilot, self.adapter, space, policy.temperature)
        prompts = [str(text) for text in pd.DataFrame(model_input)["prompt"]]
        made = proposer.propose(prompts, int((params or {}).get("seed") or 0))
        return pd.DataFrame({"action": [proposal.text for proposal in made]})


@dataclass(frozen=True, eq=False)
class ServedAdapter:
    """Multiple-choice questions in, answers out.

    Attributes:
        state: who answers.
        about: the model's description.
    """

    state: AdaptedState
    about: Mapping[str, Any]

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Answer questions.

        Args:
            model_input: a question's text in the column ``question``, the texts of its options in ``options``.
            params: not read.

        Returns:
            The option that is likeliest, in the column ``answer``, and its place, from 0, in ``index``.
        """
        asked = pd.DataFrame(model_input)
        questions = [
            Question.of(make_example(str(question), [str(text) for text in options], gold=0))
            for question, options in zip(asked["question"], asked["options"], strict=True)
        ]
        scores = answer_questions(self._workbench(), self.state, questions).scores[0]
        chosen = [max(range(len(row)), key=row.__getitem__) for row in scores]
        answers = [q.options[place] for q, place in zip(questions, chosen, strict=True)]
        return pd.DataFrame({"answer": answers, "index": chosen})

    def _workbench(self) -> Workbench:
        base = _base_model(self.about)

        def embed(questions: Any) -> Any:
            return question_embedder(_setting(self.about, "encoder", EncoderParameters))(questions)

        return Workbench(
            base,
            _setting(self.about, "prompt", PromptParameters),
            _setting(self.about, "scoring", ScoringParameters),
            embed=embed,
        )


def _base_model(about: Mapping[str, Any]) -> BaseModel:
    """The base model that the adapter was made for.

    Raises:
        RegistryError: the one that is found there now is another.
    """
    base = load_base_model(_setting(about, "model", BaseModelParameters))
    expected = about["base_model_fingerprint"]
    if expected and base.fingerprint != expected:
        raise RegistryError(
            f"the model was made for {about['base_model']} (fingerprint {expected}), and what is there under its name "
            f"is {base.name} ({base.fingerprint}); install the base model it was made for"
        )
    return base


Settings = TypeVar("Settings", bound=Parameters)


def _setting(about: Mapping[str, Any], name: str, kind: type[Settings]) -> Settings:
    found = about["settings"].get(name)
    if found is None:
        raise RegistryError(
            f"the model was registered without the run's parameters, and '{name}' of them is needed here; load it "
            f"with degaml_kedro.tracking.registry instead, or register it from a folder that has 08_reporting/run.json"
        )
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RegistryError(
            f"the model was registered with parameters '{name}' that this version does not read "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); use degaml-kedro of that time, or register it again"
        ) from error
