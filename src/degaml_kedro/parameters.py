"""The configuration's shape: every key of ``conf/*/parameters*.yml``, validated once, at the edge.

Unknown keys and out-of-range values are errors. Nothing below this module reads configuration: nodes receive
plain mappings from Kedro and turn the part they need into one of these frozen models.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel as _PydanticModel
from pydantic import ConfigDict, Field, model_validator

ScoringMode = Literal["letter", "text", "generate"]
Normalization = Literal["none", "characters", "tokens"]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Parameters(_PydanticModel):
    """Base of all parameter groups: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# --- base model -----------------------------------------------------------------------------------


class HubModel(Parameters):
    """A causal language model on the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    revision: str = "main"


class FolderModel(Parameters):
    """A model folder on disk: ``config.json``, safetensors weights and a tokenizer (or one GGUF file)."""

    kind: Literal["folder"]
    path: str
    gguf_file: str | None = None


class PackageModel(Parameters):
    """A GGUF file that an installed Python package ships."""

    kind: Literal["package"]
    package: str
    gguf_file: str


class RandomModel(Parameters):
    """A tiny randomly initialised Llama with a byte-level tokenizer, for smoke runs and tests."""

    kind: Literal["random"]
    hidden_size: int = Field(32, ge=8)
    layers: int = Field(2, ge=1)
    seed: int = 0


class BaseModelParameters(Parameters):
    """Which frozen language model, and where and how it runs."""

    source: Annotated[
        HubModel | FolderModel | PackageModel | RandomModel, Field(discriminator="kind")
    ]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")


class PromptParameters(Parameters):
    """How an example becomes text: ``plain`` question-and-answer lines, or the model's chat template."""

    format: Literal["plain", "chat"] = "chat"
    # how the options stand in the prompt: as the "A: …" lines the example has, in one line, or not at all
    options: Literal["lines", "inline", "hidden"] = "lines"
    plain_prefix: str = "Question: "
    plain_suffix: str = "\nAnswer:"


class ScoringParameters(Parameters):
    """How answers are scored (see ``llm/scoring.py``)."""

    mode: ScoringMode = "letter"
    normalization: Normalization = "none"
    batch_tokens: int = Field(4096, ge=64, le=1_000_000)
    max_new_tokens: int = Field(16, ge=1, le=1024)


# --- fine-tuning ----------------------------------------------------------------------------------


class LoraParameters(Parameters):
    """The adapter's shape, as PEFT's ``LoraConfig`` names it."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    initialization_seed: int = 999


class Phase(Parameters):
    """A number of optimiser steps at one learning rate."""

    steps: int = Field(ge=1, le=1_000_000)
    learning_rate: float = Field(gt=0, le=1.0)


class TrainingParameters(Parameters):
    """One LoRA fine-tuning run: AdamW, constant learning rate within a phase, loss on response tokens."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    batch_size: int = Field(32, ge=1, le=65536)
    max_examples: int = Field(5000, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)


class TrajectoryParameters(Parameters):
    """Trajectories (App. C step 1.1): where they start, how they train, how a step is stored."""

    start: Literal["shared_random", "pooled_warmup"] = "shared_random"
    training: TrainingParameters
    store_dtype: Literal["float32", "bfloat16"] = "float32"


# --- tasks ----------------------------------------------------------------------------------------


class SuiteSource(Parameters):
    """A family of the built-in suite."""

    kind: Literal["suite"]
    family: Name


class FileSource(Parameters):
    """A JSON, JSONL or CSV file, or a folder holding one file per split."""

    kind: Literal["file"]
    path: str
    # None: found from the columns. "messages" is {"prompt","response","system"}.
    layout: Literal["messages", "columns"] | None = None
    question: str = "question"
    options: str | tuple[str, ...] = "options"
    answer: str = "answer"
    # one file per split in a folder or through "{split}" in the path; None for a single file
    split_files: dict[str, str] | None = None
    # a prompt that two splits share: refused, or kept where it is tested on
    overlap: Literal["error", "drop_from_train"] = "error"


class HubSource(Parameters):
    """A dataset on the Hugging Face hub with a field mapping (see ``tasks/hub.py``)."""

    kind: Literal["hub"]
    id: str
    config: str | None = None
    revision: str = "main"
    splits: dict[str, str]
    mapping: str
    # a local copy in the hub's own schema: used instead of the network when set
    local_path: str | None = None


class SplitSizes(Parameters):
    """How many examples each split takes."""

    train: int = Field(ge=0)
    support: int = Field(20, ge=1)
    validation: int = Field(ge=0)
    test: int = Field(ge=1)


class TaskParameters(Parameters):
    """One task: data, not code."""

    description: str = ""
    group: str = ""
    source: Annotated[SuiteSource | FileSource | HubSource, Field(discriminator="kind")]
    # None: the profile's
    splits: SplitSizes | None = None
    scoring: ScoringMode | None = None


class ProjectParameters(Parameters):
    """Everything in ``parameters*.yml``."""

    profile: str
    seed: int = Field(ge=0, lt=2**63)
    model: BaseModelParameters
    prompt: PromptParameters
    scoring: ScoringParameters
    splits: SplitSizes
    lora: LoraParameters
    warmup: TrainingParameters
    trajectory: TrajectoryParameters
    no_meta_train: TrainingParameters
    methods: tuple[Literal["base", "no_meta_train", "pooled"], ...] = Field(min_length=1)
    tasks: dict[Name, TaskParameters]
    meta_train: tuple[Name, ...] = Field(min_length=1)
    meta_test: tuple[Name, ...] = ()

    @property
    def needs_warmup(self) -> bool:
        """Whether the pooled warm-up is trained: trajectories start from it, or a method scores it."""
        return self.trajectory.start == "pooled_warmup" or "pooled" in self.methods

    @property
    def trajectory_is_no_meta_train(self) -> bool:
        """Whether a meta-train task's trajectory is already the run that ``no_meta_train`` asks for."""
        return (
            self.trajectory.start == "shared_random"
            and self.trajectory.store_dtype == "float32"
            and self.trajectory.training == self.no_meta_train
        )

    @model_validator(mode="after")
    def _pools_name_declared_tasks(self) -> ProjectParameters:
        for pool in ("meta_train", "meta_test"):
            names = getattr(self, pool)
            unknown = [name for name in names if name not in self.tasks]
            if unknown:
                raise ValueError(
                    f"{pool} names the unknown task(s) {', '.join(unknown)}; "
                    f"declare them under 'tasks' or use one of: {', '.join(sorted(self.tasks))}"
                )
            if len(set(names)) != len(names):
                raise ValueError(f"{pool} names a task twice: {', '.join(names)}")
        both = sorted(set(self.meta_train) & set(self.meta_test))
        if both:
            raise ValueError(f"task(s) in both meta_train and meta_test: {', '.join(both)}")
        if "pool" in self.tasks:
            raise ValueError(
                "a task is called 'pool', which is the name of the pooled warm-up; call it otherwise"
            )
        modes = {self.tasks[name].scoring or self.scoring.mode for name in self.meta_train}
        if self.needs_warmup and len(modes) > 1:
            raise ValueError(
                f"the meta-train tasks are scored in different modes ({', '.join(sorted(modes))}), but the pooled "
                f"warm-up trains them together; give them one, or use trajectory.start: shared_random "
                f"and leave 'pooled' out of the methods"
            )
        if len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods names a method twice: {', '.join(self.methods)}")
        return self
