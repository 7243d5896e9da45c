"""The frozen prompt encoder: token-level hidden states, each prompt's computed once.

The states depend on the prompt alone, so nothing here runs while the generator trains. There is no pooling: the
decoder reads every token's last hidden state.

Shapes: P prompts, L prompt tokens, C encoder width.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from degaml_kedro.config.schema import (
    EncoderFolder,
    EncoderParameters,
    HubModel,
    PackageEncoder,
    RandomEncoder,
)
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings, digest_prompts
from degaml_kedro.llm.base_model import (
    ModelError,
    byte_tokenizer,
    carried_by,
    check_model_files,
    choose_device,
    choose_dtype,
    first_line,
    library_weights,
    named_folder,
    not_on_this_machine,
    weights_fingerprint,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer

    from degaml_kedro.common.progress import Progress

# token-level states are made without it, and checkpoints often lack it
_UNUSED = "pooler."

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class PromptEncoder:
    """A frozen text encoder.

    Attributes:
        name: hub id, folder or ``package:folder``.
        fingerprint: of its weights and vocabulary, the same wherever they were loaded from and in whatever dtype.
        library: Sentence Transformers' model of one module, which ends with token-level states.
        context_length: longest input in tokens.
    """

    name: str
    fingerprint: str
    library: SentenceTransformer
    context_length: int
    # the length to cut at is the library's state
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def model(self) -> Any:
        """The Transformers model, frozen, in evaluation mode."""
        return self.library[0].model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.library.tokenizer

    @property
    def width(self) -> int:
        """C, the size of a hidden state."""
        return int(self.model.config.hidden_size)

    def encode(
        self,
        prompts: Sequence[str],
        tokens: int = 512,
        batch_tokens: int = 8192,
        progress: Progress | None = None,
    ) -> PromptEmbeddings:
        """The last hidden states of every token of P prompts, in memory; equal prompts are computed once.

        Args:
            tokens: L; longer prompts lose their end, which one logged warning says.
            batch_tokens: how many tokens a batch has at most, padding included.
            progress: is told how many different prompts are done.

        Raises:
            ModelError: there are no prompts, ``tokens`` leaves no room for text, or states overflow.
        """
        if not prompts:
            raise ModelError(
                "there are no prompts to encode: an adapter is generated from at least one prompt of its task"
            )
        limit = min(tokens, self.context_length)
        marks = self.tokenizer.num_special_tokens_to_add()
        if limit <= marks:
            raise ModelError(
                f"encoder.tokens is {tokens}, but {self.name} adds {marks} tokens of its own to every prompt; "
                f"set it to {marks + 1} or more"
            )
        if long := self.too_long(prompts, tokens):
            logger.warning(
                "%d of %d prompts are longer than %d tokens and lose their end (encoder.tokens is %d, %s reads %d)",
                long,
                len(prompts),
                limit,
                tokens,
                self.name,
                self.context_length,
            )
        # the longest first: too little memory is noticed at once
        texts = sorted(set(prompts), key=lambda text: (-len(text), text))
        place = {text: row for row, text in enumerate(texts)}
        rows = torch.tensor([place[prompt] for prompt in prompts])
        count = max(1, batch_tokens // limit)
        found: list[torch.Tensor] = []
        with self._encoding:
            self.library.max_seq_length = limit
            for first in range(0, len(texts), count):
                batch = self.library.encode(
                    texts[first : first + count],
                    batch_size=count,
                    show_progress_bar=False,
                    output_value="token_embeddings",
                    convert_to_numpy=False,
                )
                found += [states.to("cpu", torch.float16) for states in batch]
                if progress is not None:
                    progress(len(found), len(texts))
        lengths = torch.tensor([len(states) for states in found])
        # what inference mode made may not be trained on; what is put together outside may
        states = torch.cat(found)
        if not torch.isfinite(states).all():
            raise ModelError(
                f"{self.name} computes states in {self.model.dtype} that are not finite in half precision; "
                f"set encoder.dtype to float32, or use another encoder"
            )
        return PromptEmbeddings(
            token_states=states,
            starts=(lengths.cumsum(0) - lengths)[rows],
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
        with self._encoding:
            ids = self.tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(found) > limit for found in ids)


_LOADED: dict[str, PromptEncoder] = {}
_LOADING = threading.Lock()


def load_prompt_encoder(parameters: EncoderParameters) -> PromptEncoder:
    """The shared prompt encoder of this process, loaded at its first call.

    Raises:
        ModelError: it cannot be found or loaded; the message says where it was looked for and how to go on.
    """
    key = parameters.model_dump_json(include={"source", "dtype", "device"})
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _load(parameters)
        return _LOADED[key]


def _load(parameters: EncoderParameters) -> PromptEncoder:
    source = parameters.source
    device = choose_device(parameters.device, "encoder.device")
    if isinstance(source, RandomEncoder):
        name = f"random-bert-{source.hidden_size}-seed{source.seed}"
        with tempfile.TemporaryDirectory() as folder:
            _write_random_encoder(source, folder)
            library = _from_pretrained(source, folder)
    elif isinstance(source, HubModel):
        name = source.id
        library = _from_pretrained(source, source.id, revision=source.revision)
    else:
        if isinstance(source, EncoderFolder):
            name, place = source.path, named_folder(source.path, "encoder.source.path")
        else:
            name = f"{source.package}:{source.folder}"
            place = carried_by(source.package, source.folder, "folder", "encoder")
        check_model_files(place)
        library = _from_pretrained(source, str(place))
    model: Any = library[0].model
    fingerprint = weights_fingerprint(model, library.tokenizer, _UNUSED)
    library.eval().requires_grad_(False).to(device, choose_dtype(parameters.dtype, device))
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if (padding := getattr(table, "padding_idx", None)) is not None:
        # RoBERTa's kind keeps the positions up to the padding's for itself
        positions -= padding + 1
    return PromptEncoder(name, fingerprint, library, positions)


def _from_pretrained(
    source: HubModel | EncoderFolder | PackageEncoder | RandomEncoder, place: str, **options: Any
) -> SentenceTransformer:
    # it takes two seconds to import, and most commands encode nothing
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    class Reported(Transformer):
        """Keeps what Transformers says of loading: tensors that a file lacks are drawn at random otherwise."""

        def _load_model(self, *arguments: Any, **settings: Any) -> Any:
            loaded: Any = super()._load_model(*arguments, output_loading_info=True, **settings)
            model, self.report = loaded
            return model

    options["trust_remote_code"] = False
    try:
        with library_weights():
            module = Reported(
                place,
                # float32 first: the fingerprint must not depend on the dtype it runs in
                model_kwargs={"dtype": torch.float32, "use_safetensors": True, **options},
                processor_kwargs=dict(options),
                config_kwargs=dict(options),
                # text as it stands, without a chat template
                modality_config={
                    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
                },
                module_output_name="token_embeddings",
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(source, HubModel):
            raise not_on_this_machine(source, "encoder", error) from error
        raise ModelError(f"the encoder in {place} cannot be loaded: {first_line(error)}") from error
    missing = sorted(key for key in module.report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise ModelError(
            f"the weights in {place} lack {len(missing)} tensor(s) of a {type(module.model).__name__}, the first is "
            f"{missing[0]}; point encoder.source at a whole text encoder"
        )
    return SentenceTransformer(modules=[module], device="cpu")


def _write_random_encoder(source: RandomEncoder, folder: str) -> None:
    from tokenizers import processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    core = byte_tokenizer(["[PAD]", "[CLS]", "[SEP]"])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
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
        model.save_pretrained(folder)
