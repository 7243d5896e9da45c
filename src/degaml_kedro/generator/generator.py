"""The generator: a prompt batch in, a LoRA adapter out (the paper's G_phi), and the folder it is kept in.

A folder holds ``generator.safetensors`` (the decoder's weights and the scales) and ``generator.json`` (sizes, what it
was trained on and how, and which base model and encoder it belongs to).

Shapes: N prompts, L prompt tokens, C encoder width, T tokens, r rank, k token width.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from degaml_kedro.adapters.adapter import Adapter, AdapterConfig
from degaml_kedro.adapters.scales import TokenScales
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import replaced_folder
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import FactorizedDecoder, HyperconvolutionalDecoder
from degaml_kedro.generator.decoders.build import Computing, ConditionSize, Decoder
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings

CONFIG_FILE = "generator.json"
WEIGHTS_FILE = "generator.safetensors"
FORMAT = 1
_DECODER, _SCALES = "decoder.", "scales."
_MOVING = threading.Lock()


class GeneratorError(DegamlError):
    """A generator that cannot be loaded or trained, or is used with what it was not made for."""


@dataclass(frozen=True)
class Identity:
    """The base model and the prompt encoder that a generator belongs to.

    Attributes:
        base_model_fingerprint: of its weights and its tokenizer.
        encoder_fingerprint: of its weights and vocabulary.
    """

    base_model: str
    base_model_fingerprint: str
    encoder: str
    encoder_fingerprint: str

    def check_base_model(self, name: str, fingerprint: str) -> None:
        """Refuse another base model.

        Raises:
            GeneratorError: it is not the generator's.
        """
        if fingerprint != self.base_model_fingerprint:
            raise GeneratorError(
                f"the generator makes adapters for {self.base_model} (fingerprint {self.base_model_fingerprint}), but "
                f"the base model is {name} ({fingerprint}); use that base model, or train a generator for this one"
            )


@dataclass(eq=False)
class Generator:
    """A decoder with everything that turns what it makes into an adapter.

    Attributes:
        decoder: prompt batch -> normalised tokens.
        scales: units of the tokens, over the meta-train trajectories.
        fingerprint: changes with anything that changes the numbers.
        about: task names, training settings, seed, versions; goes into the folder as it is.
        records: one row a training step.
        checks: one row a health check, task, module and layer.
    """

    decoder: Decoder
    scales: TokenScales
    adapter: AdapterConfig
    identity: Identity
    fingerprint: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Mapping[str, Any]] = ()

    @property
    def grid(self) -> TokenGrid:
        """The token grid of its adapters."""
        return self.scales.grid

    def computing(self, device: torch.device) -> Computing:
        """What it multiplies in on a device: in what it was trained."""
        training = self.about.get("training")
        training = training if isinstance(training, Mapping) else {}
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        dtype = dtypes.get(str(training.get("precision")), torch.float32)
        return Computing(dtype, device, training.get("cast_weights") is True)

    def to(self, device: torch.device) -> None:
        """Move it to where it is used: it is read to the CPU, where the paper's decoder takes seconds."""
        computing = self.computing(device)
        # threads share a generator: none may use it while another moves it
        with _MOVING:
            self.decoder.to(device, computing.dtype if computing.casts else None)

    @torch.no_grad()
    def tokens(self, states: Tensor, lengths: Tensor, state: int = 0) -> Tensor:
        """Normalised tokens, float32 [T, r, k], of one prompt batch: states [N, L, C] and lengths [N]."""
        hot = nn.functional.one_hot(torch.tensor([state]), self.decoder.condition.states).float()
        device = next(self.decoder.parameters()).device
        with self.computing(device).context():
            made: Tensor = self.decoder(
                states[None].to(device, torch.float32),
                lengths[None].to(device, torch.long),
                hot.to(device),
            )
        return made[0].float()

    def generate(self, states: Tensor, lengths: Tensor) -> Adapter:
        """The adapter of one prompt batch: states [N, L, C] and lengths [N]."""
        return self.assemble(self.tokens(states, lengths))

    def assemble(self, tokens: Tensor) -> Adapter:
        """The adapter, on the CPU, that normalised tokens [T, r, k] stand for."""
        tensors = self.grid.detokenize(self.scales.denormalize(tokens).cpu())
        return Adapter(self.adapter, {name: value.contiguous() for name, value in tensors.items()})

    def sample(
        self,
        embeddings: PromptEmbeddings,
        seed: int,
        draw: int = 0,
        among: Sequence[int] | None = None,
    ) -> Adapter:
        """The adapter of a draw from q_phi(adapter | D): of a random prompt batch; see :meth:`draw_prompts`."""
        return self.generate(*embeddings.rows(self.draw_prompts(embeddings, seed, draw, among)))

    def draw_prompts(
        self,
        embeddings: PromptEmbeddings,
        seed: int,
        draw: int = 0,
        among: Sequence[int] | None = None,
    ) -> Tensor:
        """The prompt batch of a draw: rows of the embeddings, int64 [N], of those ``among`` or of all.

        Raises:
            GeneratorError: the prompts were read by another encoder, or to another length.
        """
        self.check_embeddings(embeddings)
        source = torch.Generator().manual_seed(derive_seed(seed, "prompt batch", str(draw)))
        return embeddings.draw(self.decoder.condition.prompts, source, among)

    def check_embeddings(self, embeddings: PromptEmbeddings) -> None:
        """Refuse another encoder's states, or states of another length.

        Raises:
            GeneratorError: they are others.
        """
        if embeddings.fingerprint != self.identity.encoder_fingerprint:
            raise GeneratorError(
                f"the generator was trained on prompts read by {self.identity.encoder}, these were read by "
                f"{embeddings.encoder} (other weights or vocabulary); encode them with the generator's encoder"
            )
        expected = (self.decoder.condition.tokens, self.decoder.condition.width)
        if (embeddings.tokens, embeddings.width) != expected:
            raise GeneratorError(
                f"the generator reads {expected[0]} tokens a prompt of width {expected[1]}, these embeddings have "
                f"{embeddings.tokens} of width {embeddings.width}; set generator.encoder.tokens to {expected[0]}"
            )

    def check_base_model(self, name: str, fingerprint: str) -> None:
        """As :meth:`Identity.check_base_model`."""
        self.identity.check_base_model(name, fingerprint)


def save_generator(generator: Generator, folder: Path) -> None:
    """Write a generator's folder; whole or not at all."""
    decoder = {_DECODER + name: value for name, value in generator.decoder.state_dict().items()}
    scales = {_SCALES + name: value for name, value in generator.scales.tensors().items()}
    content = {
        "adapter": asdict(generator.adapter),
        "condition": asdict(generator.decoder.condition),
        "decoder": generator.decoder.settings.model_dump(mode="json"),
        "grid": generator.grid.as_json(),
    }
    write_generator_files(folder, generator, decoder | scales, content)


def write_generator_files(
    folder: Path, generator: Any, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write the two files of any generator, with what all have in common; whole or not at all."""
    content = {
        "format": FORMAT,
        "fingerprint": generator.fingerprint,
        "identity": asdict(generator.identity),
        **content,
        "about": dict(generator.about),
        "records": list(generator.records),
        "checks": list(generator.checks),
    }
    with replaced_folder(folder) as temporary:
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(stored, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(content, indent=1) + "\n"
        (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")


def read_generator_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """The description and the weights, in float32, of any generator's folder, and how to make it anew.

    Raises:
        GeneratorError: a file is missing, damaged, or of another format, or weights are not finite.
    """
    fix = f"delete the folder {folder} and make it with `kedro run --pipelines generator --only-missing-outputs`"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise GeneratorError(f"{folder} is not a generator's folder: it has no {name}; {fix}")
    with described_in(folder, fix):
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        found = content["format"]
    if found != FORMAT:
        raise GeneratorError(
            f"{folder / CONFIG_FILE} has format {found}, this version reads {FORMAT}; {fix}"
        )
    try:
        # they may be stored in bfloat16
        tensors = {name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()}
    except (SafetensorError, OSError) as error:
        raise GeneratorError(
            f"{folder / WEIGHTS_FILE} cannot be read ({error}); the file is truncated or damaged: {fix}"
        ) from error
    return content, tensors, fix


@contextmanager
def described_in(folder: Path, fix: str) -> Iterator[None]:
    """Raise what a stranger's description causes inside the block as a ``GeneratorError``, with how to make it anew."""
    try:
        yield
    except GeneratorError:
        raise
    except DegamlError as error:
        raise GeneratorError(f"{folder / CONFIG_FILE} cannot be used: {error}; {fix}") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise GeneratorError(f"{folder / CONFIG_FILE} cannot be read ({error!r}); {fix}") from error


def common_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that all generators have, by name, out of a description."""
    same = {name: content[name] for name in ("fingerprint", "about", "records", "checks")}
    return {**same, "identity": Identity(**content["identity"])}


def adapter_shape(content: Mapping[str, Any]) -> AdapterConfig:
    """The shape of the adapters, out of a description."""
    shape = content["adapter"]
    return AdapterConfig(**{**shape, "target_modules": tuple(shape["target_modules"])})


def checked_weights(
    folder: Path, tensors: Mapping[str, Tensor], prefix: str, network: nn.Module, fix: str
) -> dict[str, Tensor]:
    """A network's weights, by its own names, out of a folder's.

    Raises:
        GeneratorError: they are not those of the network, or not finite.
    """
    stored = _below(tensors, prefix)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in stored.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[0][0]
        raise GeneratorError(
            f"{folder / WEIGHTS_FILE} does not hold the decoder that {CONFIG_FILE} describes: '{wrong}' is "
            f"{found.get(wrong, 'missing')} there and {expected.get(wrong, 'not')} expected; {fix}"
        )
    bad = next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise GeneratorError(
            f"{folder / WEIGHTS_FILE}: '{bad}' holds NaN or infinite weights; {fix}"
        )
    return stored


def load_generator(folder: Path) -> Generator:
    """Read the folder of a generator that reads prompts.

    Raises:
        GeneratorError: a file is missing, damaged, of another format, or of a generator that reads examples.
    """
    content, tensors, fix = read_generator_files(folder)
    with described_in(folder, fix):
        if content["decoder"]["kind"] == "associative":
            raise GeneratorError(
                f"{folder} holds a generator that reads examples, and one that reads prompts is needed here; name the "
                f"folder of another variant"
            )
        settings: HyperconvolutionalDecoder | FactorizedDecoder = TypeAdapter(
            HyperconvolutionalDecoder | FactorizedDecoder
        ).validate_python(content["decoder"])
        config, common = adapter_shape(content), common_fields(content)
        grid = TokenGrid.from_json(content["grid"])
        decoder = Decoder(settings, grid, ConditionSize(**content["condition"]), seed=0)
    decoder.load_state_dict(checked_weights(folder, tensors, _DECODER, decoder, fix))
    try:
        scales = TokenScales.from_tensors(grid, _below(tensors, _SCALES))
    except DegamlError as error:
        raise GeneratorError(f"{folder / WEIGHTS_FILE}: {error}; {fix}") from error
    return Generator(decoder.eval(), scales, config, **common)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
