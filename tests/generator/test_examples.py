"""A generator that reads examples, on tiny random models: what it writes, learns and stores."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from degaml_kedro.adapters.adapter import save_peft_folder
from degaml_kedro.config.schema import (
    AssociativeDecoder,
    GeneratorTraining,
    GeneratorVariant,
    LoraParameters,
    PromptParameters,
)
from degaml_kedro.generator.examples import (
    Draw,
    ExampleGenerator,
    load_example_generator,
    reads_examples,
    save_example_generator,
    shuffled_answers,
    train_on_episodes,
)
from degaml_kedro.generator.generator import GeneratorError, load_generator
from degaml_kedro.llm.associative import ExampleReader, layers_at
from degaml_kedro.llm.finetune import (
    AnswerSequence,
    TrainingError,
    answer_loss,
    answer_loss_under,
    answer_sequences,
)
from degaml_kedro.llm.in_context import in_context_sequences
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.tasks.example import Example, make_example, make_open_example
from tests.llm.helpers import tiny_base
from tests.llm.test_in_context import BASES

PLAIN = PromptParameters(format="plain", options="hidden")
LORA = LoraParameters(rank=2, alpha=4.0)
DECODER = AssociativeDecoder(kind="associative", depths=(0.1, 0.3), rank=40, metric_rank=3)
TRAINING = GeneratorTraining(
    mse=0.0, sft=1.0, steps=4, batch_size=2, sft_examples=3, support=(4, 6), learning_rate=3e-3
)


def labelled(count: int, first: int = 0) -> list[Example]:
    """Numbers, each labelled by whether it is even."""
    return [
        make_example(f"Which one is {n}", ["even", "odd"], gold=n % 2)
        for n in range(first, first + count)
    ]


def shown(examples: list[Example]) -> list[AnswerSequence]:
    """Examples as sequences."""
    return answer_sequences(tiny_base(), examples, PLAIN, "text")


def episodes(seed: int = 0) -> Draw:
    """Tasks that differ in where their numbers begin."""
    return lambda number, support, query: (
        labelled(support, 7 * number + seed),
        labelled(query, 7 * number + seed + support),
    )


def trained(steps: int = 4) -> ExampleGenerator:
    base = tiny_base()
    generator = ExampleGenerator.fresh(base, DECODER, LORA)
    training = TRAINING.model_copy(update={"steps": steps})
    for _ in train_on_episodes(generator, base, episodes(), PLAIN, "text", training, 3):
        pass
    return generator


def test_the_order_of_the_examples_does_not_matter_and_their_number_may_be_any():
    base, generator = tiny_base(), trained()
    examples = labelled(9)
    one = generator.write(base, shown(examples))
    other = generator.write(base, shown(examples[::-1]))
    for (name, (a, b)), (c, d) in zip(one.layers().items(), other.layers().values(), strict=True):
        torch.testing.assert_close(b @ a, d @ c, atol=2e-5, rtol=1e-3, msg=name)
    for count in (1, 2, 30):
        generator.write(base, shown(labelled(count)))
    with pytest.raises(TrainingError, match="no examples"):
        generator.write(base, shown([]))


@pytest.mark.parametrize("name", BASES)
def test_the_adapter_is_what_was_trained_and_peft_computes_the_same(name, tmp_path):
    base = BASES[name]()
    generator = ExampleGenerator.fresh(base, DECODER, LORA)
    generator.decoder.requires_grad_(False)
    for memory in generator.decoder.memories:
        memory.metric_out.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
        memory.value_out.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.1)
        memory.state_out.normal_(generator=torch.Generator().manual_seed(4)).mul_(0.1)
    for b in generator.decoder.b:
        b.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.1)
    shown = answer_sequences(base, labelled(5), PLAIN, "text")
    asked = answer_sequences(base, labelled(4, 20), PLAIN, "text")
    reader = ExampleReader.of(base, layers_at(base, DECODER.depths))
    layers = generator.decoder.write(reader, shown)
    as_trained = answer_loss_under(base, asked, base.activate(layers, 1.0))
    adapter = generator.write(base, shown)
    loss = answer_loss(base, asked, adapter.tensors, adapter.config)
    assert loss.item() == pytest.approx(as_trained.item(), rel=1e-4)
    save_peft_folder(adapter, tmp_path / "adapter")
    peft = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    try:
        total, count = 0.0, 0
        for one in asked:
            logits = peft(torch.tensor([one.ids])).logits[0].log_softmax(-1)
            for place in range(len(one.ids) - one.answer, len(one.ids)):
                total -= logits[place - 1, one.ids[place]].item()
                count += 1
        assert total / count == pytest.approx(loss.item(), rel=1e-4)
    finally:
        peft.unload()


def test_a_small_rank_keeps_the_best_of_the_memory():
    base = tiny_base()
    errors = []
    shown = answer_sequences(base, labelled(8), PLAIN, "text")
    exact = ExampleGenerator.fresh(base, DECODER, LORA).decoder.adapter(base, shown).layers()
    for rank in (1, 3, 40):
        settings = DECODER.model_copy(update={"rank": rank})
        cut = ExampleGenerator.fresh(base, settings, LORA).decoder.adapter(base, shown).layers()
        assert cut[next(iter(cut))][0].shape[0] == LORA.rank + rank
        errors.append(
            sum(
                float((b @ a - d @ c).norm())
                for (a, b), (c, d) in zip(exact.values(), cut.values(), strict=True)
            )
        )
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == 0


def test_a_resumed_training_has_the_bits_of_one_that_never_stopped():
    base = tiny_base()
    whole = ExampleGenerator.fresh(base, DECODER, LORA)
    steps = [
        (step.record, step.state())
        for step in train_on_episodes(whole, base, episodes(), PLAIN, "text", TRAINING, 3)
    ]
    resumed = ExampleGenerator.fresh(base, DECODER, LORA)
    rest = list(
        train_on_episodes(resumed, base, episodes(), PLAIN, "text", TRAINING, 3, steps[1][1])
    )
    assert [step.record.loss for step in rest] == [record.loss for record, _ in steps[2:]]
    assert all(record.tokens > 0 for record, _ in steps)
    for name, value in whole.decoder.state_dict().items():
        assert torch.equal(value, resumed.decoder.state_dict()[name]), name


def test_everything_of_the_decoder_learns():
    fresh = ExampleGenerator.fresh(tiny_base(), DECODER, LORA).decoder.state_dict()
    after = trained().decoder.state_dict()
    # the metric's and values' inner maps learn once the outer ones are not zero, A once B is not
    unmoved = [name for name, value in fresh.items() if torch.equal(value, after[name])]
    assert unmoved == []


def test_training_on_episodes_lowers_the_loss_on_tasks_of_their_kind():
    base = tiny_base()
    settings = DECODER.model_copy(update={"map_rate": 1.0})
    training = TRAINING.model_copy(update={"steps": 30, "support": (8,), "sft_examples": 8})
    generator = ExampleGenerator.fresh(base, settings, LORA)
    losses = [
        step.record.loss
        for step in train_on_episodes(generator, base, episodes(), PLAIN, "text", training, 3)
    ]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(("context_share", "distill"), [(0.0, 2.0), (1.0, 2.0), (1.0, 0.0)])
def test_an_adapter_is_judged_in_the_prompt_and_by_the_model_that_has_the_examples_there(
    context_share, distill
):
    base = tiny_base()
    training = TRAINING.model_copy(
        update={
            "steps": 1, "batch_size": 1, "sft": 0.5, "context_share": context_share, "distill": distill,
        }
    )  # fmt: skip
    generator = ExampleGenerator.fresh(base, DECODER, LORA)
    run = train_on_episodes(generator, base, episodes(), PLAIN, "text", training, 3)
    record = next(run).record
    # before the first step the decoder is a fresh one
    fresh = ExampleGenerator.fresh(base, DECODER, LORA)
    found = []
    for size in TRAINING.support:
        support, query = episodes()(0, size, TRAINING.sft_examples)
        written = fresh.write(base, shown(support))
        behind = in_context_sequences(base, query, [support] * len(query), PLAIN, "text")
        alone = answer_sequences(base, query, PLAIN, "text")

        def logs(sequences, active):
            with active_lora(active), torch.inference_mode():
                return torch.cat([
                    base.model(torch.tensor([one.ids])).logits[0, -one.answer - 1 : -1] for one in sequences
                ]).log_softmax(-1)  # fmt: skip

        adapted = logs(behind if context_share else alone, base.activate_adapter(written))
        answers = torch.tensor([token for one in alone for token in one.ids[-one.answer :]])
        loss = 0.5 * -adapted.gather(1, answers[:, None]).mean()
        if not context_share:
            told = logs(behind, None)
            loss += distill * (told.exp() * (told - adapted)).sum(-1).mean()
        found.append(loss.item())
    assert any(record.loss == pytest.approx(one, rel=1e-3) for one in found)


def test_a_folder_holds_the_generator(tmp_path):
    base, generator = tiny_base(), replace(trained(), fingerprint="f", about={"tasks": ["a"]})
    save_example_generator(generator, tmp_path / "examples.generator")
    assert reads_examples(tmp_path / "examples.generator")
    again = load_example_generator(tmp_path / "examples.generator")
    assert (again.fingerprint, again.about) == ("f", {"tasks": ["a"]})
    one, other = (g.write(base, shown(labelled(5))) for g in (generator, again))
    assert one.config == other.config
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    with pytest.raises(GeneratorError, match="one that reads prompts is needed here"):
        load_generator(tmp_path / "examples.generator")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("decoder", {"kind": "associative"}, "generator.json cannot be read"),
        ("layers", {"model.layers.0.self_attn.q_proj": [7, 32]}, "does not hold the decoder"),
        ("written", {}, "does not hold the decoder"),
        ("format", 99, "has format 99"),
    ],
)
def test_a_damaged_description_is_refused_by_name(tmp_path, key, value, said):
    folder = tmp_path / "examples.generator"
    save_example_generator(ExampleGenerator.fresh(tiny_base(), DECODER, LORA), folder)
    path = folder / "generator.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))
    with pytest.raises(GeneratorError, match=said):
        load_example_generator(folder)


def test_another_base_model_is_refused():
    generator = ExampleGenerator.fresh(tiny_base(), DECODER, LORA)
    generator.identity = replace(generator.identity, base_model_fingerprint="another")
    with pytest.raises(GeneratorError, match="use that base model"):
        generator.write(tiny_base(), shown(labelled(3)))


def test_shuffled_answers_are_those_of_others():
    shared = labelled(12)
    found = shuffled_answers(shared, 5)
    assert [one.prompt for one in found] == [one.prompt for one in shared]
    assert sorted(one.gold for one in found) == sorted(one.gold for one in shared)
    assert [one.gold for one in found] != [one.gold for one in shared]
    own = [make_example(f"x{n}", [f"a{n}", f"b{n}", f"c{n}"], gold=n % 3) for n in range(6)]
    assert all(
        one.gold != other.gold for one, other in zip(shuffled_answers(own, 5), own, strict=True)
    )
    opened = [make_open_example(f"x{n}", f"y{n}") for n in range(6)]
    answers = [one.options[0] for one in shuffled_answers(opened, 5)]
    assert sorted(answers) == [f"y{n}" for n in range(6)]
    assert all(one != f"y{n}" for n, one in enumerate(answers))


def test_tokens_of_a_trajectory_are_no_aim_of_the_associative_decoder():
    with pytest.raises(ValueError, match=r"set training\.mse to 0"):
        GeneratorVariant(decoder=DECODER, training=GeneratorTraining())


def test_prompts_are_learned_from_all_trajectories():
    given = {"decoder": {"kind": "factorized"}, "training": {"tasks": 30}}
    with pytest.raises(ValueError, match=r"training\.tasks is for an associative decoder"):
        GeneratorVariant.model_validate(given)
