"""What strategies refine: an adapter, and what later strategies put around it.

An adapted state is immutable: a strategy returns a new one, so that a failed one leaves nothing behind. As a folder it
is a PEFT folder a member (``adapter_0``, ``adapter_1``, …), ``state.json`` with the examples that stand in prompts, and
``state.safetensors`` with the prompt batches that routers compare with and a task's latent vectors.

Shapes: C width of the prompt encoder, N prompts in a batch, H width of the base model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from degaml_kedro.adapters.adapter import MAX_JSON, Adapter, load_peft_folder, save_peft_folder
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import replaced_folder
from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.in_context import PrefixMemory
from degaml_kedro.tasks.example import MAX_OPTIONS, TRUE_FALSE, Example, make_open_example

Distance = Literal["euclidean", "cosine"]
VoteMethod = Literal[
    "avg_sim_score", "avg_prompt_embed", "max_confidence", "majority_vote", "sum_logprobs"
]
ROUTERS = ("avg_sim_score", "avg_prompt_embed")
Order = Literal["given", "random", "nearest"]
# what a context may hold
MAX_SHOTS, MAX_POOL = 40, 1000
MAX_ENCODER_WEIGHT = 4.0

STATE_FILE = "state.json"
TENSORS_FILE = "state.safetensors"
FORMAT = 3
_VECTORS = "steering.vectors"


class StateError(DegamlError):
    """An adapted state that cannot be built, read or used."""


@dataclass(frozen=True)
class Demonstrations:
    """Solved examples that stand in the prompt, in front of the question.

    Attributes:
        examples: what demonstrations are taken from, in the given order.
        shots: how many stand in the prompt, at most; 0 where the encoder's word alone is asked for.
        order: ``given``: the first ones, as they come; ``random``: the first ones of the seed's order; ``nearest``:
            those nearest to the question, the nearest one last.
        seed: of the random order.
        encoder_weight: what the word of a classifier of the prompt encoder's embeddings, fitted to ``examples``, counts
            beside the model's: the factor of its log-probabilities; 0 asks the model alone.
    """

    examples: tuple[Example, ...]
    shots: int
    order: Order = "given"
    seed: int = 0
    encoder_weight: float = 0.0

    @property
    def needs_encoder(self) -> bool:
        """Whether the prompt encoder reads the questions that are asked."""
        return self.order == "nearest" or self.encoder_weight > 0


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter, what stands in the prompt when it is asked, and the prompt batch it was generated from.

    Attributes:
        prompts: sentence embeddings of its prompt batch, float32 [N, C], each of length 1; None where no generator
            made it.
        memory: keys and values of the demonstrations under this adapter; a member made from this one has its own.
    """

    adapter: Adapter
    prompts: Tensor | None = None
    demonstrations: Demonstrations | None = None
    memory: PrefixMemory = field(default_factory=PrefixMemory, init=False, repr=False)


@dataclass(frozen=True)
class Vote:
    """How several members answer together (test-time scaling).

    Attributes:
        method: a router, which picks one member a question, or an ensemble.
        distance: what routers compare embeddings with.
        weights: of the members' log-probabilities, for ``sum_logprobs``; None counts them alike.
    """

    method: VoteMethod
    distance: Distance = "euclidean"
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Steering:
    """A vector added to the final hidden states (SLOT).

    Attributes:
        times: AdamW steps.
        scope: ``sample``: a vector of its own for every question, made from that question's prompt when it is asked;
            ``task``: one vector for all of them.
        vectors: float32 [members, H], for scope ``task``; else None.
    """

    times: int
    learning_rate: float
    scope: Literal["sample", "task"] = "sample"
    vectors: Tensor | None = None

    def of(self, members: Sequence[int]) -> Steering:
        """The same for some of the members."""
        if self.vectors is None:
            return self
        return replace(self, vectors=self.vectors[list(members)])


@dataclass(frozen=True, eq=False)
class AdaptedState:
    """Where adaptation stands: at least one adapter, and several of them with a vote.

    Raises:
        StateError: there is none, or no vote, or weights that are not the members'.
    """

    members: tuple[Member, ...]
    vote: Vote | None = None
    steering: Steering | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise StateError("an adapted state needs at least one adapter")
        if len(self.members) > 1 and self.vote is None:
            raise StateError(f"{len(self.members)} adapters need a vote to answer together")
        if self.vote is not None and (weights := self.vote.weights) is not None:
            if self.vote.method != "sum_logprobs":
                raise StateError(f"a vote by {self.vote.method} has no weights; sum_logprobs has")
            if len(weights) != len(self.members) or not sum(weights) > 0:
                raise StateError(
                    f"{len(self.members)} adapters need as many weights, and one above 0; the vote has {list(weights)}"
                )

    @property
    def best(self) -> int:
        """The member that counts most: of those with the largest weight the first."""
        weights = self.vote.weights if self.vote is not None and self.vote.weights else (0.0,)
        return weights.index(max(weights))

    @property
    def is_one_adapter(self) -> bool:
        """Whether an adapter is all there is: nothing else decides what is answered."""
        alone = len(self.members) == 1 and self.steering is None
        return alone and self.members[0].demonstrations is None

    @property
    def needs_encoder(self) -> bool:
        """Whether the prompt encoder reads questions: for a router, the nearest demonstrations or a classifier."""
        routed = len(self.members) > 1 and self.vote is not None and self.vote.method in ROUTERS
        shown = (member.demonstrations for member in self.members)
        return routed or any(one is not None and one.needs_encoder for one in shown)


# --- as a folder ----------------------------------------------------------------------------------
# Anybody may have written the file: bounds are those of the families, or a question could take hours.


class _Vote(Parameters):
    method: VoteMethod
    distance: Distance
    weights: tuple[Annotated[float, Field(ge=0, le=1000)], ...] | None


class _Steering(Parameters):
    times: int = Field(ge=1, le=10)
    learning_rate: float = Field(ge=1e-3, le=1.0)
    scope: Literal["sample", "task"]


class _Example(Parameters):
    prompt: str = Field(min_length=1)
    system: str
    # one alone is the answer to an open question
    options: tuple[str, ...] = Field(min_length=1, max_length=MAX_OPTIONS)
    true_false: bool
    gold: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_whole(self) -> _Example:
        if self.gold >= len(self.options):
            raise ValueError(f"gold {self.gold} is none of {len(self.options)} options")
        if self.true_false and self.options != TRUE_FALSE:
            raise ValueError("an example that is answered by true or false has these options")
        return self

    def example(self) -> Example:
        if len(self.options) == 1:
            return make_open_example(self.prompt, self.options[0], self.system)
        labels = TRUE_FALSE if self.true_false else tuple(ascii_uppercase[: len(self.options)])
        answer = f"[{labels[self.gold]}]"
        return Example(self.prompt, answer, self.system, self.options, labels, self.gold)


class _Demonstrations(Parameters):
    examples: tuple[_Example, ...] = Field(min_length=1, max_length=MAX_POOL)
    shots: int = Field(ge=0, le=MAX_SHOTS)
    order: Order
    seed: int = Field(ge=0, lt=2**63)
    encoder_weight: float = Field(ge=0, le=MAX_ENCODER_WEIGHT)


class _StateFile(Parameters):
    """``state.json``: all but the tensors, whose names it lists, so that a missing one is noticed.

    Members may share demonstrations: ``context_of`` has each one's place in ``contexts``, or null.
    """

    format: Literal[3]
    # as many as the family `tts` makes
    members: int = Field(ge=1, le=20)
    vote: _Vote | None
    steering: _Steering | None
    tensors: tuple[str, ...]
    contexts: tuple[_Demonstrations, ...] = Field(max_length=20)
    context_of: tuple[int | None, ...]

    @model_validator(mode="after")
    def _has_its_contexts(self) -> _StateFile:
        if len(self.context_of) != self.members:
            raise ValueError(
                f"context_of has {len(self.context_of)} entries for {self.members} members"
            )
        places = {place for place in self.context_of if place is not None}
        if places != set(range(len(self.contexts))):
            raise ValueError(f"context_of names {sorted(places)} of {len(self.contexts)} contexts")
        return self


def save_state(state: AdaptedState, folder: Path) -> None:
    """Write an adapted state's folder, in place of an earlier one; whole or not at all.

    Raises:
        StateError: the state's parts do not belong together, or hold NaN or infinite numbers; nothing is written.
    """
    tensors = _tensors(state)
    try:
        text = json.dumps(_describe(state, tensors).model_dump(mode="json"), indent=1) + "\n"
        if len(text) > MAX_JSON:
            raise StateError(
                f"its {STATE_FILE} would be larger than {MAX_JSON // 2**20} MB; give its contexts fewer examples"
            )
        _check(state)
    except (ValidationError, StateError) as error:
        raise StateError(f"the state for {folder} cannot be saved: {_told(error)}") from error
    with replaced_folder(folder) as temporary:
        for number, member in enumerate(state.members):
            save_peft_folder(member.adapter, temporary / f"adapter_{number}")
        if tensors:
            # copies: members may share a prompt batch, and safetensors keeps no two names for one memory
            copies = {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            save_file(copies, temporary / TENSORS_FILE, metadata={"format": "pt"})
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")


def load_state(folder: Path) -> AdaptedState:
    """Read an adapted state's folder.

    Returns:
        The state, on the CPU, the same bits that were saved.

    Raises:
        StateError: a file or a member is missing, damaged or of another format, or a tensor has the wrong shape or
            is not finite.
    """
    try:
        content = _read_content(folder)
        tensors = _read_tensors(folder, content)
        contexts = [
            Demonstrations(**{**dict(one), "examples": tuple(e.example() for e in one.examples)})
            for one in content.contexts
        ]
        members = tuple(
            Member(
                _read_member(folder / f"adapter_{number}"),
                tensors.get(f"prompts.{number}"),
                None if place is None else contexts[place],
            )
            for number, place in enumerate(content.context_of)
        )
        vote, steering = content.vote, content.steering
        state = AdaptedState(
            members,
            None if vote is None else Vote(**dict(vote)),
            None if steering is None else Steering(**dict(steering), vectors=tensors.get(_VECTORS)),
        )
        _check(state)
    except StateError as error:
        raise StateError(
            f"{folder} cannot be used: {error}; delete the folder {folder}, then `kedro run --only-missing-outputs` "
            f"makes it again"
        ) from error
    return state


def _describe(state: AdaptedState, tensors: dict[str, Tensor]) -> _StateFile:
    own = [member.demonstrations for member in state.members]
    contexts: list[Demonstrations] = []
    for one in own:
        if one is not None and one not in contexts:
            contexts.append(one)
    steering = state.steering and {
        name: getattr(state.steering, name) for name in _Steering.model_fields
    }
    return _StateFile.model_validate(
        {
            "format": FORMAT,
            "members": len(state.members),
            "vote": state.vote and vars(state.vote),
            "steering": steering,
            "tensors": tuple(tensors),
            "contexts": tuple(
                {**vars(one), "examples": tuple(map(_record, one.examples))} for one in contexts
            ),
            "context_of": tuple(None if one is None else contexts.index(one) for one in own),
        },
        strict=True,
    )


def _record(example: Example) -> dict[str, Any]:
    same = {name: getattr(example, name) for name in ("prompt", "system", "options", "gold")}
    return {**same, "true_false": example.labels == TRUE_FALSE}


def _tensors(state: AdaptedState) -> dict[str, Tensor]:
    found = {f"prompts.{number}": member.prompts for number, member in enumerate(state.members)}
    found[_VECTORS] = None if state.steering is None else state.steering.vectors
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _check(state: AdaptedState) -> None:
    """What holds of every state in a folder, on its way in and on its way out."""
    width, first = None, ""
    for name, tensor in _tensors(state).items():
        about = f"'{name}' is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        if tensor.dtype != torch.float32 or tensor.dim() != 2 or tensor.numel() == 0:
            raise StateError(f"{about}; it has to be float32 with two axes and something in them")
        if not torch.isfinite(tensor).all():
            raise StateError(f"'{name}' holds NaN or infinite numbers")
        if name == _VECTORS:
            if len(tensor) != len(state.members):
                raise StateError(f"{about}, but there are {len(state.members)} members")
        elif width is None:
            width, first = tensor.shape[1], name
        elif tensor.shape[1] != width:
            raise StateError(f"{about}, but '{first}' is {width} wide; one encoder made them all")
    if state.steering is not None:
        has, scope = state.steering.vectors is not None, state.steering.scope
        if has != (scope == "task"):
            raise StateError(
                f"steering of scope '{scope}' has {'vectors' if has else 'no vectors'}; they belong to scope 'task'"
            )
    for number, member in enumerate(state.members):
        bad = next((k for k, t in member.adapter.tensors.items() if not t.isfinite().all()), None)
        if bad is not None:
            raise StateError(f"'{bad}' of adapter_{number} holds NaN or infinite weights")


def _read_content(folder: Path) -> _StateFile:
    path = folder / STATE_FILE
    if not path.is_file():
        raise StateError(f"it has no {STATE_FILE}")
    if path.stat().st_size > MAX_JSON:
        raise StateError(f"{STATE_FILE} is larger than {MAX_JSON // 2**20} MB")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise StateError(
                f"{STATE_FILE} has format {raw.get('format')}, this version reads {FORMAT}; adapt anew from the task's "
                f"examples, or take its adapter_0, a PEFT folder, as it is"
            )
        # from text: strict in the types of values, and a list is JSON's way to write a tuple
        return _StateFile.model_validate_json(json.dumps(raw), strict=True)
    except StateError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{STATE_FILE} cannot be read ({_told(error)})") from error


def _read_tensors(folder: Path, content: _StateFile) -> dict[str, Tensor]:
    path = folder / TENSORS_FILE
    possible = {_VECTORS, *(f"prompts.{number}" for number in range(content.members))}
    if strange := sorted(set(content.tensors) - possible):
        raise StateError(f"{STATE_FILE} names the tensor '{strange[0]}', and no member has it")
    if not content.tensors and not path.exists():
        return {}
    if not path.is_file():
        raise StateError(f"it has no {TENSORS_FILE}, which holds {', '.join(content.tensors)}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StateError(
            f"{TENSORS_FILE} cannot be read ({error}): it is truncated or damaged"
        ) from error
    if wrong := sorted(set(tensors) ^ set(content.tensors)):
        raise StateError(
            f"{TENSORS_FILE} does not hold what {STATE_FILE} describes: '{wrong[0]}' is in one of them only"
        )
    return tensors


def _read_member(path: Path) -> Adapter:
    if not path.is_dir():
        raise StateError(f"its member {path.name} is missing")
    try:
        return load_peft_folder(path)
    # PEFT's file is read as it is: what is not the shape of its keys ends in one of these
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path.name} cannot be read: {error}") from error


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}"
        for one in error.errors(include_url=False, include_input=False)
    )
