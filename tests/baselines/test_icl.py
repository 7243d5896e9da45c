"""In-context learning: what stands in the prompt, and scores as if every long prompt stood alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degaml_kedro.baselines import icl
from degaml_kedro.common.progress import Progress
from degaml_kedro.config.schema import InContextSetting, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.llm.in_context import fitting, in_context_prompt, in_context_sequences
from degaml_kedro.llm.packing import Pack
from degaml_kedro.llm.prompting import PromptError, answer_texts, render_prompt
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.tasks.example import Example, Question, make_example, make_true_false_example
from tests.baselines.helpers import setup
from tests.llm.helpers import tiny_base
from tests.llm.test_scoring import examples

PLAIN = PromptParameters(format="plain", options="hidden")
CHAT = PromptParameters(format="chat", options="hidden")
# the long prompt is all there is to say
VERBATIM = PromptParameters(format="plain", plain_prefix="", plain_suffix="")

ROME = make_example("Italy's capital?", ["Rome", "Paris"], gold=0, system="Be brief.")
OSLO = make_example("Norway's capital?", ["Bonn", "Oslo"], gold=1, system="Be brief.")
BERN = make_example("Switzerland's capital?", ["Bern", "Oslo"], gold=0, system="Be brief.")


def capitals(count: int, length: int = 0) -> list[Example]:
    return [
        make_example(f"What is {i} and 1{'?' * (1 + length)}", [str(i), f"{i + 1}."], gold=1)
        for i in range(count)
    ]


def adapt(support: list[Example], setting: InContextSetting, seed: int) -> list[Example]:
    return list(icl.adapt(setup("icl", prompt=PLAIN), None, support, setting, seed).examples)


def predict(
    base: BaseModel,
    demonstrations: Sequence[Example],
    asked: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None = None,
) -> list[Prediction]:
    own = setup("icl", base=base, prompt=prompt, scoring=scoring)
    return icl.predict(own, icl.Demonstrated(tuple(demonstrations)), asked, 0, progress)


# --- prompts --------------------------------------------------------------------------------------


def test_plain_demonstrations_stand_with_their_answers_and_a_blank_line_between() -> None:
    text = in_context_prompt(tiny_base(), Question.of(BERN), [ROME, OSLO], PLAIN, "text")
    assert text == (
        "Be brief.\n\nQuestion: Italy's capital?\nAnswer: Rome\n\n"
        "Be brief.\n\nQuestion: Norway's capital?\nAnswer: Oslo\n\n"
        "Be brief.\n\nQuestion: Switzerland's capital?\nAnswer:"
    )


def test_chat_demonstrations_are_turns_and_the_system_message_comes_once() -> None:
    chat = PromptParameters(format="chat", options="lines")
    text = in_context_prompt(tiny_base(), Question.of(BERN), [OSLO], chat, "letter")
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nNorway's capital?\nA: Bonn\nB: Oslo<|im_end|>\n"
        "<|im_start|>assistant\n[B]<|im_end|>\n"
        "<|im_start|>user\nSwitzerland's capital?\nA: Bern\nB: Oslo<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("prompt", [PLAIN, CHAT])
def test_without_demonstrations_it_is_the_prompt_as_ever(prompt: PromptParameters) -> None:
    base, question = tiny_base(), Question.of(BERN)
    assert in_context_prompt(base, question, [], prompt, "text") == render_prompt(
        BERN, prompt, base
    )


@settings(max_examples=30)
@given(
    query=examples(),
    support=st.lists(examples(), max_size=4),
    gold=st.integers(0, 100),
    form=st.sampled_from(["plain", "chat"]),
    mode=st.sampled_from(["letter", "text"]),
)
def test_the_query_s_answer_changes_nothing_in_its_prompt(
    query: Example, support: list[Example], gold: int, form: str, mode: str
) -> None:
    base = tiny_base()
    prompt = PromptParameters(format=form)
    gold %= len(query.options)
    other = dataclasses.replace(query, gold=gold, response=f"[{query.labels[gold]}]")
    # the query is among the support examples, with either answer: it must not give itself away
    shown = [*support, query, other]
    scoring = ScoringParameters(mode=mode)
    first, second = (predict(base, shown, [asked], prompt, scoring)[0] for asked in (query, other))
    assert first.option_scores == second.option_scores
    a, b = (
        in_context_sequences(base, [asked], [shown], prompt, mode)[0]  # type: ignore[arg-type]
        for asked in (query, other)
    )
    assert a.ids[: -a.answer] == b.ids[: -b.answer]


@pytest.mark.parametrize("prompt", [PLAIN, CHAT])
def test_a_demonstration_that_reads_like_the_query_is_left_out(prompt: PromptParameters) -> None:
    base = tiny_base()
    # other options, not listed: the model reads the same question, and would read its answer
    twin = make_example("Switzerland's capital?", ["Cairo", "Bern"], gold=1)
    question = Question.of(BERN)
    with_twin = in_context_prompt(base, question, [ROME, twin, OSLO], prompt, "text")
    assert with_twin == in_context_prompt(base, question, [ROME, OSLO], prompt, "text")
    assert "Bern" not in with_twin
    # another query keeps it
    assert "Bern" in in_context_prompt(base, Question.of(OSLO), [twin], prompt, "text")


# --- which demonstrations -------------------------------------------------------------------------


def test_the_seed_decides_the_order_and_fewer_shots_are_its_beginning() -> None:
    support = capitals(20)
    all_of_them = adapt(support, InContextSetting(shots=50), 7)
    assert sorted(all_of_them, key=support.index) == support
    assert adapt(support, InContextSetting(shots=5), 7) == all_of_them[:5]
    assert adapt(support, InContextSetting(shots=50), 8) != all_of_them


@settings(max_examples=30)
@given(
    context=st.integers(40, 400),
    shots=st.integers(0, 12),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_as_many_as_the_longest_question_leaves_room_for(
    context: int, shots: int, lengths: list[int]
) -> None:
    base = dataclasses.replace(tiny_base(), context_length=context)
    support = capitals(10)
    questions = [Question.of(capitals(1, length)[0]) for length in lengths]

    def longest(count: int) -> int:
        solved = "".join(
            f"{render_prompt(shown, PLAIN, base)} {shown.options[1]}\n\n"
            for shown in support[:count]
        )
        # the tiny tokenizer has a token a byte
        return max(
            len(solved + render_prompt(question, PLAIN, base) + answer)
            for question in questions
            for answer in answer_texts(question, "text", PLAIN)
        )

    found = fitting(base, support, questions, PLAIN, "text", shots)
    fits = [count for count in range(min(shots, 10) + 1) if longest(count) <= context]
    assert found == max(fits, default=0)


def test_the_log_says_when_fewer_fit_and_scoring_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = dataclasses.replace(tiny_base(), context_length=120)
    support, asked = capitals(10), capitals(3, 2)
    with caplog.at_level(logging.INFO):
        found = predict(base, support, asked, PLAIN, ScoringParameters(mode="text"))
    assert "2 of 10 demonstrations fit in the 120 tokens of" in caplog.text
    fewer = predict(tiny_base(), support[:2], asked, PLAIN, ScoringParameters(mode="text"))
    assert found == fewer


def test_a_question_that_another_leaves_more_out_for_counts_too() -> None:
    # the longest question reads like the longest demonstration and leaves it out; the second longest does not
    long, short = capitals(1, 40)[0], capitals(2, 38)[1]
    base = dataclasses.replace(tiny_base(), context_length=130)
    scoring = ScoringParameters(mode="text")
    assert fitting(base, [long], [Question.of(long)], PLAIN, "text", 1) == 0
    assert len(predict(base, [long], [long, short], PLAIN, scoring)) == 2


def test_a_question_that_does_not_fit_alone_is_refused_by_its_text() -> None:
    base = dataclasses.replace(tiny_base(), context_length=40)
    asked = [capitals(2)[1], capitals(1, 60)[0]]
    with pytest.raises(PromptError, match=r"example 1 is \d+ tokens long .* 'What is 0 and 1\?\?"):
        predict(base, capitals(2), asked, PLAIN, ScoringParameters(mode="text"))


# --- scores ---------------------------------------------------------------------------------------


def alone(
    base: BaseModel,
    demonstrations: Sequence[Example],
    asked: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
) -> list[Prediction]:
    """Every long prompt scored by itself."""
    found = []
    for example in asked:
        question = Question.of(example)
        text = in_context_prompt(base, question, demonstrations, prompt, scoring.mode)
        whole = dataclasses.replace(example, prompt=text, system="")
        found += score_examples(base, [whole], VERBATIM, scoring)
    return found


@settings(max_examples=40)
@given(
    asked=st.lists(examples(), min_size=1, max_size=6),
    support=st.lists(examples(), max_size=4),
    mode=st.sampled_from(["letter", "text"]),
    normalization=st.sampled_from(["none", "characters", "tokens"]),
    options=st.sampled_from(["lines", "hidden"]),
    tokens=st.sampled_from([64, 500, 4096]),
)
def test_scores_are_those_of_every_long_prompt_by_itself(
    asked: list[Example],
    support: list[Example],
    mode: str,
    normalization: str,
    options: str,
    tokens: int,
) -> None:
    base = tiny_base()
    prompt = PromptParameters(format="plain", options=options)
    scoring = ScoringParameters(mode=mode, normalization=normalization, batch_tokens=tokens)
    support = [*support, asked[0]]
    found = predict(base, support, asked, prompt, scoring)
    for one, other in zip(found, alone(base, support, asked, prompt, scoring), strict=True):
        assert one.option_scores == pytest.approx(other.option_scores, abs=1e-4)
        assert (one.gold, one.text == other.text) == (
            other.gold,
            one.predicted == other.predicted,
        )


def test_in_chat_scores_are_those_of_a_plain_forward() -> None:
    base = tiny_base()
    scoring = ScoringParameters(mode="text", normalization="tokens")
    (found,) = predict(base, [ROME, OSLO], [BERN], CHAT, scoring)
    text = in_context_prompt(base, Question.of(BERN), [ROME, OSLO], CHAT, "text")
    context = base.tokenizer(text, add_special_tokens=False).input_ids
    for score, option in zip(found.option_scores, BERN.options, strict=True):
        answer = base.tokenizer(option, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = base.model(torch.tensor([context + answer])).logits[0].float()
        chances = logits.log_softmax(-1)[len(context) - 1 : -1]
        total = chances[range(len(answer)), answer].sum().item()
        assert score == pytest.approx(total / len(answer), abs=1e-4)


def test_true_false_questions_and_equal_ones_are_answered() -> None:
    base = tiny_base()
    asked = [make_true_false_example("Snow is cold.", True) for _ in range(2)]
    support = [make_true_false_example("Fire is cold.", False)]
    first, second = predict(base, support, asked, PLAIN, ScoringParameters(mode="letter"))
    assert first.option_scores == second.option_scores
    assert first.text in ("[True]", "[False]")


def test_demonstrations_are_computed_once_and_the_tokens_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, support, asked = tiny_base(), capitals(4, 20), capitals(30, 5)
    computed: list[int] = []
    hidden_states = BaseModel.hidden_states

    def watched(self: BaseModel, pack: Pack, elementary: bool = False) -> torch.Tensor:
        computed.append(pack.tokens)
        return hidden_states(self, pack, elementary)

    monkeypatch.setattr(BaseModel, "hidden_states", watched)
    seen: list[tuple[int, int]] = []
    scoring = ScoringParameters(mode="text", batch_tokens=200)
    found = predict(base, support, asked, PLAIN, scoring, lambda *at: seen.append(at))
    together = sum(computed)
    assert sum(prediction.tokens for prediction in found) == together
    # the demonstrations first, once
    assert max(computed[1:]) <= 200 < computed[0]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (30, 30)
    assert len(seen) == len(computed) - 1 > 1
    apart = sum(p.tokens for p in alone(base, support, asked, PLAIN, scoring))
    assert together < apart / 4


def test_no_questions_no_answers() -> None:
    assert predict(tiny_base(), [ROME], [], PLAIN, ScoringParameters(mode="text")) == []


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PLAIN, CHAT])
@pytest.mark.parametrize("mode", ["letter", "text"])
def test_training_sequences_are_the_prompt_and_the_answer_alone_counts(
    prompt: PromptParameters, mode: str
) -> None:
    base = tiny_base()
    shown = [[ROME, OSLO], [], [BERN]]
    asked = [BERN, OSLO, BERN]
    found = in_context_sequences(base, asked, shown, prompt, mode)  # type: ignore[arg-type]
    plain = answer_sequences(base, asked, prompt, mode)  # type: ignore[arg-type]
    for sequence, without, example, parts in zip(found, plain, asked, shown, strict=True):
        text = in_context_prompt(base, Question.of(example), parts, prompt, mode)  # type: ignore[arg-type]
        ids = tuple(base.tokenizer(text, add_special_tokens=False).input_ids)
        assert sequence.ids[: -sequence.answer] == ids
        # the same answer, in chat with the end token
        assert sequence.ids[-sequence.answer :] == without.ids[-without.answer :]
    # without demonstrations, or with one that reads like the example, nothing stands in front
    assert found[1:] == plain[1:]
