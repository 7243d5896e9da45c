"""Scoring against a naive reference: one plain forward per option, full softmax, no sharing, no packing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import local_torch_dtype

from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm import extraction
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.extraction import extract_option
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.llm.prompting import PromptError, answer_texts, encode_questions, render_prompt
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import Example, make_example
from tests.llm.helpers import merged_reference, random_adapter, tiny_base

WORDS = st.text(alphabet="abcdefgh ", min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    options = draw(st.lists(WORDS, min_size=2, max_size=5, unique=True))
    question = draw(st.text(alphabet="abc de?\n", min_size=1, max_size=60).filter(str.strip))
    gold = draw(st.integers(0, len(options) - 1))
    system = draw(st.sampled_from(["", "Answer well."]))
    return make_example(f"Q {question.strip()}", options, gold, system)


def reference_scores(
    base: BaseModel, example: Example, prompt: PromptParameters, mode: str, model: object = None
) -> list[float]:
    """log p(answer | prompt) by one forward of prompt + answer per option."""
    model = model or base.model
    text = render_prompt(example, prompt, base)
    special = prompt.format == "plain"
    context = base.tokenizer(text, add_special_tokens=special).input_ids
    totals = []
    for answer in answer_texts(example, mode, prompt):  # type: ignore[arg-type]
        whole = base.tokenizer(text + answer, add_special_tokens=special).input_ids
        tail = whole[len(context) :]
        with torch.no_grad():
            logits = model(torch.tensor([context + tail])).logits[0].float()  # type: ignore[operator]
        chances = logits.log_softmax(-1)
        totals.append(
            sum(chances[len(context) - 1 + i, token].item() for i, token in enumerate(tail))
        )
    return totals


def centered(scores: tuple[float, ...] | list[float]) -> torch.Tensor:
    values = torch.tensor(scores, dtype=torch.float64)
    return values - values.mean()


@settings(max_examples=25)
@given(
    batch=st.lists(examples(), min_size=1, max_size=6),
    mode=st.sampled_from(["letter", "text"]),
    form=st.sampled_from(["plain", "chat"]),
    options=st.sampled_from(["lines", "inline", "hidden"]),
    tokens=st.sampled_from([64, 4096]),
)
def test_options_are_scored_as_one_plain_forward_each(
    batch: list[Example], mode: str, form: str, options: str, tokens: int
) -> None:
    base = tiny_base()
    prompt = PromptParameters(format=form, options=options)  # type: ignore[arg-type]
    scoring = ScoringParameters(mode=mode, batch_tokens=tokens)  # type: ignore[arg-type]
    predictions = score_examples(base, batch, prompt, scoring)
    for example, prediction in zip(batch, predictions, strict=True):
        expected = reference_scores(base, example, prompt, mode)
        assert torch.allclose(
            centered(prediction.option_scores), centered(expected), atol=2e-4, rtol=1e-4
        )
        assert prediction.gold == example.gold
        ranked = sorted(expected, reverse=True)
        if ranked[0] - ranked[1] > 1e-3:
            assert prediction.predicted == expected.index(ranked[0])


@settings(max_examples=10)
@given(batch=st.lists(examples(), min_size=1, max_size=4))
def test_normalised_scores_are_absolute(batch: list[Example]) -> None:
    base, prompt = tiny_base(), PromptParameters(format="plain")
    for kind in ("characters", "tokens"):
        scoring = ScoringParameters(mode="text", normalization=kind)  # type: ignore[arg-type]
        for example, prediction in zip(
            batch, score_examples(base, batch, prompt, scoring), strict=True
        ):
            expected = reference_scores(base, example, prompt, "text")
            encoded = encode_questions(base, [example], prompt, "text")[0]
            for score, total, option, answer in zip(
                prediction.option_scores, expected, example.options, encoded.answers, strict=True
            ):
                length = len(option) if kind == "characters" else len(answer)
                assert score == pytest.approx(total / length, abs=2e-4)


def test_an_adapter_scores_as_the_merged_model_does() -> None:
    base, prompt = tiny_base(), PromptParameters(format="plain")
    adapter = random_adapter(base, LoraParameters(rank=3, alpha=5))
    merged = merged_reference(base, adapter)
    batch = [make_example(f"What {i}?", ["aa", "b c", "dd e"], i % 3) for i in range(5)]
    scored = score_examples(base, batch, prompt, ScoringParameters(mode="text"), adapter)
    plain = score_examples(base, batch, prompt, ScoringParameters(mode="text"))
    for example, prediction, without in zip(batch, scored, plain, strict=True):
        expected = reference_scores(base, example, prompt, "text", merged)
        assert torch.allclose(
            centered(prediction.option_scores), centered(expected), atol=2e-4, rtol=1e-4
        )
        assert prediction.option_scores != without.option_scores


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["text", "letter", "generate"])
def test_the_tokenizer_s_padding_side_changes_nothing(
    side: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    batch = [make_example("Why " + "so " * i, ["ab", "c", "def"], 1) for i in range(1, 6)]
    scoring = ScoringParameters(mode=mode, max_new_tokens=4)  # type: ignore[arg-type]
    before = score_examples(base, batch, PromptParameters(), scoring)
    monkeypatch.setattr(base.tokenizer, "padding_side", side)
    assert score_examples(base, batch, PromptParameters(), scoring) == before


def test_generation_is_greedy_and_independent_of_the_batch() -> None:
    base, prompt = tiny_base(), PromptParameters(format="plain")
    scoring = ScoringParameters(mode="generate", max_new_tokens=6)
    batch = [make_example("Tell " + "me " * i, ["ab", "cd"], 0) for i in range(4)]
    for example, prediction in zip(
        batch, score_examples(base, batch, prompt, scoring), strict=True
    ):
        ids = base.tokenizer(render_prompt(example, prompt, base)).input_ids
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == base.tokenizer.eos_token_id:
                break
        text = base.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert prediction.text == text
        assert prediction.predicted == extract_option(text, example.labels)


def test_what_is_generated_but_names_no_option_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    monkeypatch.setattr(extraction, "extract_option", lambda text, labels: None)
    scoring = ScoringParameters(mode="generate", max_new_tokens=2)
    (prediction,) = score_examples(
        base, [make_example("Q", ["a", "b"], 0)], PromptParameters(), scoring
    )
    assert prediction.predicted is None
    assert all(math.isinf(score) for score in prediction.option_scores)


def test_progress_reaches_the_end_and_an_empty_list_is_fine() -> None:
    base, seen = tiny_base(), []
    batch = [make_example("Why " + "so " * i, ["ab", "c"], 1) for i in range(9)]
    scoring = ScoringParameters(mode="text", batch_tokens=64)
    score_examples(
        base,
        batch,
        PromptParameters(),
        scoring,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (9, 9)
    assert seen == sorted(seen)
    assert score_examples(base, [], PromptParameters(), scoring) == []


def test_a_prompt_longer_than_the_context_is_named() -> None:
    base = tiny_base()
    long = make_example("word " * 1000, ["a", "b"], 0)
    with pytest.raises(PromptError, match=r"example 1 is \d+ tokens long .* context .* 2048"):
        score_examples(
            base,
            [make_example("short", ["a", "b"], 0), long],
            PromptParameters(),
            ScoringParameters(),
        )
    with pytest.raises(PromptError, match=r"12 examples \(0, 1, .* 9, …\) are up to \d+ tokens"):
        score_examples(base, [long] * 12, PromptParameters(), ScoringParameters())


def test_a_missing_chat_template_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    monkeypatch.setattr(base.tokenizer, "chat_template", None)
    with pytest.raises(PromptError, match="no chat template; use 'plain'"):
        score_examples(
            base,
            [make_example("Q", ["a", "b"], 0)],
            PromptParameters(format="chat"),
            ScoringParameters(),
        )


def test_scores_do_not_depend_on_the_default_type_that_a_loading_thread_sets() -> None:
    base = tiny_base()
    asked = [make_example("What is 2?", ["two", "three"], 0)]
    prompt, scoring = PromptParameters(format="plain"), ScoringParameters(mode="text")
    (alone,) = score_examples(base, asked, prompt, scoring)
    with local_torch_dtype(torch.bfloat16):
        (beside,) = score_examples(base, asked, prompt, scoring)
    assert beside.option_scores == alone.option_scores


def test_threads_score_with_their_own_adapters() -> None:
    from concurrent.futures import ThreadPoolExecutor

    base, prompt, how = tiny_base(), PromptParameters(), ScoringParameters(mode="text")
    batch = [make_example("Why " + "so " * i, ["ab", "c", "def"], 1) for i in range(8)]
    adapters = [None, initial_adapter(base, LoraParameters())]
    adapters += [random_adapter(base, LoraParameters(rank=2), seed) for seed in (1, 2)]
    alone = [score_examples(base, batch, prompt, how, adapter) for adapter in adapters]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(
                lambda adapter: score_examples(base, batch, prompt, how, adapter), adapters
            )
            assert list(together) == alone
