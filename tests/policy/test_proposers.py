"""Proposals of a tiny random model: valid whatever the model thinks, and decided by the seed alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from llguidance import LLMatcher
from transformers import PreTrainedTokenizerBase

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.config.schema import LoraParameters
from degaml_kedro.llm.finetune import answer_loss, initial_adapter
from degaml_kedro.llm.prompting import PromptError
from degaml_kedro.policy import proposers
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.policy.proposers import (
    PolicyProposer,
    ProposalError,
    UniformProposer,
    encode_decision,
)
from tests.llm.helpers import plain_copy, random_adapter, tiny_base
from tests.llm.test_any_model import MODELS, library, made, opened
from tests.policy.spaces import KNOWN, SPACE

LORA = LoraParameters(rank=2, alpha=4)
RWKV = {"vocab_size": 259, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
PROMPTS = ["Strategy:", "accuracy 0.35\nStrategy:", "a", "What was tried:\nnothing\nStrategy:"]


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def adapter(base):
    return random_adapter(base, LORA)


def texts(proposals):
    return [proposal.text for proposal in proposals]


def test_every_sample_is_a_valid_action_in_the_canonical_text(base, adapter):
    proposer = PolicyProposer(base, adapter, SPACE)
    found = [p for seed in range(6) for p in proposer.propose(PROMPTS * 2, seed)]
    for proposal in found:
        assert SPACE.parse(proposal.text)[0].text == proposal.text
        assert proposal.source == "policy"
    assert [p.prompt for p in found[:4]] == PROMPTS
    first = found[0]
    assert first.tokens == len(PROMPTS[0]) + len(first.text.encode())  # a token is a byte here
    assert len(set(texts(found))) > 5


def grammar_of(space, base):
    grammar = LLMatcher.grammar_from_lark(space.grammar())
    return LLMatcher(proposers._grammar_tokenizer(base), grammar)


def test_the_seed_decides(base):
    proposer = PolicyProposer(base, None, SPACE)
    assert proposer.propose(PROMPTS, 7) == proposer.propose(PROMPTS, 7)
    assert texts(proposer.propose(PROMPTS * 4, 7)) != texts(proposer.propose(PROMPTS * 4, 8))


def test_a_row_alone_is_the_row_in_a_batch(base, adapter, monkeypatch):
    proposer = PolicyProposer(base, adapter, SPACE)
    prompts = PROMPTS * 3
    together = proposer.propose(prompts, 3)
    for count in (1, 2, 5):
        assert proposer.propose(prompts[:count], 3) == together[:count]
    monkeypatch.setattr(proposers, "_ROWS_AT_ONCE", 1)
    assert proposer.propose(prompts, 3) == together


@pytest.mark.parametrize("name", ["Phi-3, longrope", "RWKV"])
def test_no_row_depends_on_another_s_length(name, tmp_path, monkeypatch):
    """RWKV counts padding as tokens; with longrope the longest row decides how positions are turned."""
    kind, given, _ = MODELS.get(name, ("RwkvConfig", RWKV, ""))
    base = opened(made(getattr(transformers, kind)(**given), tmp_path / "model"))
    model, seen = library(tmp_path / "model"), []

    def choose(row, logits, temperature):
        with torch.no_grad():
            alone = model(torch.tensor([[*row.prompt, *row.written]])).logits[0, -1]
        seen.append((logits, alone))
        return chosen(row, logits, temperature)

    chosen = proposers._Row.choose
    monkeypatch.setattr(proposers._Row, "choose", choose)
    PolicyProposer(base, None, SPACE).propose(["a" + "x" * (20 * n) for n in range(4)], 3)
    assert len(seen) > 8
    for logits, alone in seen:
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_with_temperature_zero_every_choice_is_the_likeliest_of_a_plain_model(base):
    proposer = PolicyProposer(base, None, SPACE, temperature=0.0)
    found = proposer.propose(PROMPTS, 0)
    assert found == proposer.propose(PROMPTS, 1)
    model, tokenizer = plain_copy(base), base.tokenizer
    for prompt, proposal in zip(PROMPTS, found, strict=True):
        # one token after the other, no cache, no batch, nothing written ahead
        ids = tokenizer(prompt).input_ids
        matcher = grammar_of(SPACE, base)
        while not matcher.is_stopped():
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            allowed = proposers._allowed(matcher, len(logits))
            token = int(allowed[logits[allowed].argmax()])
            matcher.consume_token(token)
            ids = [*ids, token]
        assert proposal.text == tokenizer.decode(ids[len(prompt) :])
        assert proposal.tokens == len(ids)


def test_choices_follow_the_models_probabilities(base):
    space = ActionSpace.of({"mix": {"lambda": [0.5, 0.5]}, "vote": {"method": ["mean"]}}, KNOWN)
    ids = base.tokenizer('Strategy:{"family":"').input_ids
    with torch.no_grad():
        logits = plain_copy(base)(torch.tensor([ids])).logits[0, -1]
    pair = [base.tokenizer(letter).input_ids[0] for letter in "mv"]
    for temperature in (0.5, 1.0, 3.0):
        expected = (logits[pair] / temperature).softmax(0)[0].item()
        drawn = PolicyProposer(base, None, space, temperature).propose(["Strategy:"] * 600, 0)
        share = np.mean(["mix" in text for text in texts(drawn)])
        assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 600))
    cold = PolicyProposer(base, None, space, 1e-30).propose(["Strategy:"] * 4, 0)
    assert texts(cold) == texts(
        PolicyProposer(base, None, space, 0.0).propose(["Strategy:"] * 4, 0)
    )


def test_full_exploration_is_the_uniform_proposer_and_asks_no_model(base, monkeypatch):
    # of the class: put back on the model, it would go past the decoder of its steered copies
    monkeypatch.setattr(type(base.model), "forward", None)
    proposer = PolicyProposer(base, None, SPACE, exploration=1.0)
    found = proposer.propose(["a" * 5000, *PROMPTS], 5)
    assert found == UniformProposer(SPACE).propose(["a" * 5000, *PROMPTS], 5)
    assert {(p.source, p.tokens) for p in found} == {("uniform", 0)}


def test_some_exploration_replaces_rows_and_leaves_the_others_as_they_were(base):
    prompts = ["Strategy:"] * 60
    mixed = PolicyProposer(base, None, SPACE, exploration=0.3).propose(prompts, 2)
    own = PolicyProposer(base, None, SPACE).propose(prompts, 2)
    drawn = UniformProposer(SPACE).propose(prompts, 2)
    sources = Counter(p.source for p in mixed)
    assert 8 <= sources["uniform"] <= 30
    for found, policy, uniform in zip(mixed, own, drawn, strict=True):
        assert found == (policy if found.source == "policy" else uniform)


def test_uniform_draws_have_a_seed_a_row():
    proposer = UniformProposer(SPACE)
    found = proposer.propose(["p"] * 400, 1)
    assert found[:3] == proposer.propose(["p"] * 3, 1)
    families = Counter(SPACE.parse(p.text)[0].family for p in found)
    assert all(count == pytest.approx(100, abs=35) for count in families.values())


def test_no_prompts_are_no_proposals(base):
    assert PolicyProposer(base, None, SPACE).propose([], 0) == []


def test_the_adapter_changes_what_is_written_and_the_base_model_stays(base, adapter):
    own = PolicyProposer(base, None, SPACE).propose(PROMPTS * 4, 1)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    assert texts(PolicyProposer(base, adapter, SPACE).propose(PROMPTS * 4, 1)) != texts(own)
    assert PolicyProposer(base, None, SPACE).propose(PROMPTS * 4, 1) == own
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_adapter_that_diverged_is_refused(base, adapter):
    broken = Adapter(adapter.config, {k: v * math.nan for k, v in adapter.tensors.items()})
    with pytest.raises(ProposalError, match="not numbers.*diverged"):
        PolicyProposer(base, broken, SPACE).propose(PROMPTS, 0)


def test_a_text_that_does_not_end_is_cut_and_invalid(base, monkeypatch):
    monkeypatch.setattr(proposers, "MAX_NEW_TOKENS", 14)
    found = PolicyProposer(base, None, SPACE).propose(PROMPTS, 0)
    for proposal, prompt in zip(found, PROMPTS, strict=True):
        assert proposal.tokens == len(prompt) + 14
        assert proposal.text.startswith('{"family":"')
        with pytest.raises(ActionError, match="not JSON"):
            SPACE.parse(proposal.text)


def test_a_prompt_that_leaves_no_room_is_refused_with_both_lengths(base):
    proposer = PolicyProposer(base, None, SPACE)
    assert SPACE.parse(proposer.propose(["a" * 1848], 0)[0].text)
    with pytest.raises(PromptError, match=r"1849 tokens.*up to 200.*2048"):
        proposer.propose(["a" * 1849], 0)
    with pytest.raises(PromptError, match="2040 tokens"):
        encode_decision(base, "a" * 2040, '{"family":"rest"}')


def test_a_tokenizer_that_the_grammar_cannot_read_is_refused(base):
    other = dataclasses.replace(base, tokenizer=PreTrainedTokenizerBase())
    with pytest.raises(ProposalError, match="slow one"):
        proposers._grammar_tokenizer(other)


def test_the_grammars_tokenizer_is_built_once(base):
    assert proposers._grammar_tokenizer(base) is proposers._grammar_tokenizer(base)


# --- what the policy is trained on ----------------------------------------------------------------


def test_a_decision_reads_back_and_continues_as_the_sampler_does(base):
    prompt = "accuracy 0.35\nStrategy:"
    for proposal in UniformProposer(SPACE).propose([prompt] * 20, 0):
        decision = encode_decision(base, prompt, proposal.text)
        answer = decision.ids[-decision.answer :]
        assert list(decision.ids[: -decision.answer]) == base.tokenizer(prompt).input_ids
        assert answer[-1] == base.tokenizer.eos_token_id
        assert base.tokenizer.decode(answer[:-1]) == proposal.text
        matcher, position = grammar_of(SPACE, base), 0
        while not matcher.is_stopped():
            # what the sampler writes ahead has to be what the policy was trained to write there
            ahead = matcher.compute_ff_tokens()
            assert tuple(ahead) == answer[position : position + len(ahead)]
            step = ahead or [answer[position]]
            assert matcher.consume_tokens(step)
            position += len(step)
        assert position == len(answer) - 1


def test_training_on_a_decision_makes_it_likelier(base):
    prompt, wanted = "Strategy:", '{"family":"mix","lambda":1.0}'
    batch = [encode_decision(base, prompt, wanted)]
    start = initial_adapter(base, LoraParameters(rank=8, alpha=16))
    tensors = {key: t.clone().requires_grad_() for key, t in start.tensors.items()}
    optimizer = torch.optim.Adam(tensors.values(), lr=0.02)
    for _ in range(60):
        loss = answer_loss(base, batch, tensors, start.config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = Adapter(start.config, {key: t.detach() for key, t in tensors.items()})
    found = PolicyProposer(base, learned, SPACE, temperature=0.0).propose([prompt], 0)
    assert found[0].text == wanted
    before = PolicyProposer(base, start, SPACE).propose([prompt] * 40, 0)
    after = PolicyProposer(base, learned, SPACE).propose([prompt] * 40, 0)
    assert texts(after).count(wanted) > texts(before).count(wanted) + 20
