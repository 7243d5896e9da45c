"""The Python API: load a trained generator and policy, adapt to examples, ask, save.

    session = Session.load()
    adapted = session.adapt(examples, held_out=5)
    print(adapted.explain())
    adapted.save("adapter")

Nothing here needs Kedro. One session serves several threads: the frozen models are shared and never written to, and
everything that an adaptation makes belongs to it alone.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.special import softmax

from degaml_kedro.adaptation import (
    Accuracy,
    Answer,
    Change,
    Listener,
    Progress,
    Report,
    TaskAdaptation,
    Tried,
    explain,
)
from degaml_kedro.checkpoint.folder import (
    AnswerSettings,
    SavedAdaptation,
    TrainedPair,
    check_widths,
    load_adaptation,
    save_adaptation,
)
from degaml_kedro.checkpoint.hub import load_trained_pair
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.progress import Progress as Counted
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import SearchParameters
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.prompting import encode_questions
from degaml_kedro.llm.scoring import compare_options, score_examples
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.strategies.answering import answer_questions, predict
from degaml_kedro.strategies.context import Context, Interruption, Meter
from degaml_kedro.strategies.generated import question_embedder
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.tasks.example import Example, Question, shares_options
from degaml_kedro.tasks.pasted import read_question

__all__ = [
    "Accuracy",
    "AdaptationCancelled",
    "AdaptedModel",
    "Answer",
    "Budget",
    "Change",
    "Progress",
    "Report",
    "Session",
    "SessionError",
    "Tried",
]

# a family that reads answers is tried on two halves
MIN_SUPPORT = 2


class SessionError(DegamlError):
    """Examples that nothing can be adapted to, or models that do not belong together."""


class AdaptationCancelled(Exception):  # noqa: N818 - nothing went wrong
    """The work was stopped, as was asked for; nothing of it is left."""


@dataclass(frozen=True)
class Budget:
    """How much may be tried; None leaves what the policy was trained with.

    Attributes:
        rounds: the best strategy of a round is carried out, and the next round starts from there.
        proposals: strategies a round.
        seconds: of trying; strategies that it leaves no time for are not tried.
    """

    rounds: int | None = None
    proposals: int | None = None
    seconds: float | None = None

    def of(self, search: SearchParameters) -> SearchParameters:
        """The search's parameters within this budget.

        Raises:
            SessionError: a number is out of range.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        try:
            return SearchParameters.model_validate({**search.model_dump(), **given}, strict=True)
        except ValueError as error:
            raise SessionError(
                f"the budget {given} cannot be used: rounds are 1 to 100, proposals 1 to 1024, seconds above 0"
            ) from error


class AnsweringModel:
    """A model that is asked: the frozen base model, or one with an adaptation around it.

    Setting ``cancel`` in another thread stops the work.
    """

    def __init__(self, context: Context, state: AdaptedState | None) -> None:
        self._context, self._state = context, state

    @property
    def base_model(self) -> str:
        """The base model's name."""
        return self._context.base.name

    @property
    def context_length(self) -> int:
        """How many tokens the base model takes at once."""
        return self._context.base.context_length

    def count_tokens(self, text: str) -> int:
        """How many of the base model's tokens a text is, without special ones."""
        ids = self._context.base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return len(ids)

    def predict(
        self,
        questions: str | Sequence[str | Question | Example],
        *,
        cancel: threading.Event | None = None,
    ) -> list[Answer]:
        """Answer questions with their options; of an adapted model with ``labels`` a text is enough.

        Raises:
            SessionError: a question is a text, and there are no ``labels``; or scores are not finite.
            PromptError: a question is longer than the model's context.
            AdaptationCancelled: ``cancel`` was set.
        """
        return self._answers(questions, self._state, cancel)

    def score(
        self,
        examples: Sequence[Example],
        *,
        progress: Counted | None = None,
        cancel: threading.Event | None = None,
    ) -> Accuracy:
        """The accuracy on examples; of those that a model was adapted to, it says little.

        Raises:
            SessionError: there are no examples.
            PromptError: a question is longer than the model's context.
            AdaptationCancelled: ``cancel`` was set.
        """
        examples, context = _examples(examples), self._asked(cancel)
        if not examples:
            raise SessionError("there are no examples to score; give at least one")
        with _cancellable():
            if self._state is not None:
                return Accuracy.of(predict(context, self._state, examples, progress))
            told = context.watched(progress)
            found = score_examples(
                context.base, examples, context.prompt, context.scoring, None, told
            )
            return Accuracy.of(found)

    def _answers(
        self,
        questions: str | Sequence[str | Question | Example],
        state: AdaptedState | None,
        cancel: threading.Event | None,
    ) -> list[Answer]:
        given = [questions] if isinstance(questions, str) else questions
        plain, context = self._plain(given), self._asked(cancel)
        with _cancellable():
            if state is not None:
                found = answer_questions(context, state, plain)
            else:
                settings, told = (context.prompt, context.scoring), context.watched(None)
                found = compare_options(context.base, plain, *settings, progress=told)
        return [_answer(one, scores) for one, scores in zip(plain, found.scores[0], strict=True)]

    def _plain(self, questions: Iterable[str | Question | Example]) -> list[Question]:
        """Questions without answers."""
        fix = "give Question or Example objects: tasks.pasted.read_question makes one from a text and options"
        found = _checked(questions, Question | Example, "question", fix)
        return [one if isinstance(one, Question) else Question.of(one) for one in found]

    def _asked(self, cancel: threading.Event | None) -> Context:
        # a meter of its own: several threads may ask
        return replace(self._context, interrupted=cancel, meter=Meter())


class Session(AnsweringModel):
    """A trained generator and policy, ready to adapt their base model to tasks.

    Attributes:
        trained: the generator, the policy, and their settings.
        space: the strategies that the policy may choose.
    """

    def __init__(self, trained: TrainedPair) -> None:
        """Load the base model that the pair belongs to.

        Raises:
            ModelError: the base model cannot be loaded, or the policy does not fit it.
            GeneratorError: the base model is not the pair's.
        """
        self.trained, settings = trained, trained.settings
        base = load_base_model(settings.model)
        super().__init__(Context(base, settings.prompt, settings.scoring), None)
        trained.generator.check_base_model(base.name, base.fingerprint)
        # once, here: moving it while another thread generates would be seen there
        trained.generator.to(base.device)
        policy = settings.policy
        self.space = ActionSpace.of(policy.families)
        self._policy_model = load_base_model(policy.model) if policy.model else base
        # a policy for other layers is refused now, and not at its first proposal
        if trained.policy is not None:
            self._policy_model.activate_adapter(trained.policy)

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        tracking_uri: str | None = None,
    ) -> Session:
        """Load a trained pair and its base model.

        Args:
            source: a pair's folder, the data folder of a run, an MLflow URI (``models:/…``, ``runs:/…``), or the id of
                a repository on the Hugging Face hub; None for the pair that ships with the package.
            revision: of a hub repository: a branch, tag or commit.
            tracking_uri: MLflow's; None for the one that MLflow is set to.

        Raises:
            DegamlError: there is no such pair, it is damaged, or its base model cannot be loaded.
        """
        return cls(load_trained_pair(source, revision=revision, tracking_uri=tracking_uri))

    def adapt(
        self,
        examples: Sequence[Example],
        *,
        held_out: int | Sequence[Example] = 0,
        budget: Budget | None = None,
        seed: int = 0,
        progress: Listener | None = None,
        cancel: threading.Event | None = None,
    ) -> AdaptedModel:
        """Generate an adapter for a task, and refine it as the policy proposes (sections 2.1 and 2.2).

        The generator reads the questions alone. Strategies are tried on the support examples; the held-out ones are
        asked of three models (base, generated, adapted) and decide nothing.

        Args:
            examples: of one task.
            held_out: how many of them to hold out, or examples that are held out already.
            budget: how much may be tried.
            seed: of all randomness: the same arguments give the same adapter.
            progress: is told where the adaptation stands, in this thread.
            cancel: set it in another thread to stop.

        Raises:
            SessionError: there are too few examples.
            PromptError: a question is longer than the model's context.
            AdaptationCancelled: ``cancel`` was set.
        """
        examples = _examples(examples)
        if isinstance(held_out, Iterable):
            held_out = _examples(held_out)
        else:
            held_out = _whole(held_out, "held_out", "a number of examples, or examples")
        seed = _whole(seed, "seed", "a whole number")
        asking = replace(self._context, interrupted=cancel)
        # in the user's order, so that a message counts as the user does
        for some in (examples, held_out):
            if not isinstance(some, int):
                scoring = asking.scoring
                encode_questions(asking.base, some, asking.prompt, scoring.answers, scoring.room)
        support, asked, warnings = _deal(examples, held_out, seed)
        policy = self.trained.settings.policy
        search = (budget or Budget()).of(policy.search)
        adaptation = TaskAdaptation(
            self.trained,
            asking,
            self._policy_model,
            policy.model_copy(update={"search": search}),
            support,
            asked,
            Report(
                len(support),
                len(asked),
                base_model=self.base_model,
                source=self.trained.name,
                seed=seed,
                warnings=warnings,
            ),
            progress,
        )
        with _cancellable():
            state = adaptation.run()
        lean = replace(adaptation.context, draw=None, interrupted=None, meter=Meter())
        labels = support[0].options if shares_options(support) else ()
        settings, report = self.trained.settings.answering, adaptation.report
        return AdaptedModel(lean, state, settings, report, labels)


class AdaptedModel(AnsweringModel):
    """The base model with what an adaptation put around it.

    Attributes:
        state: adapters, examples in the prompt, how they answer together, and the vector δ.
        report: how it came about.
        labels: the answers that all examples shared, in order: a question without options is asked with them. Empty
            where examples had options of their own.
    """

    def __init__(
        self,
        context: Context,
        state: AdaptedState,
        settings: AnswerSettings,
        report: Report,
        labels: tuple[str, ...] = (),
    ) -> None:
        super().__init__(context, state)
        self.state, self.report, self.labels = state, report, labels
        self._settings = settings

    @classmethod
    def open(cls, folder: str | Path) -> AdaptedModel:
        """Open what :meth:`save` wrote; no generator and no policy is needed.

        Raises:
            CheckpointError: it is no saved adaptation, or damaged.
            ModelError: the base model cannot be loaded, or the prompt encoder where answers need it.
            SessionError: what is found under the base model's name is another one.
        """
        state, saved = load_adaptation(Path(folder).expanduser())
        settings = saved.settings
        base = load_base_model(settings.model)
        if base.fingerprint != saved.base_model_fingerprint:
            raise SessionError(
                f"{folder} was made for {saved.base_model} (fingerprint {saved.base_model_fingerprint}), and what is "
                f"there under its name is {base.name} ({base.fingerprint}); install the base model it was made for"
            )
        # fits the models: refused now, and not at the first question
        base.activate_adapters([member.adapter for member in state.members])
        check_widths(state, Path(folder), base, settings.encoder)
        embed = question_embedder(settings.encoder)
        context = Context(base, settings.prompt, settings.scoring, embed=embed)
        return cls(context, state, settings, saved.report, saved.labels)

    def predict_base(
        self,
        questions: str | Sequence[str | Question | Example],
        *,
        cancel: threading.Event | None = None,
    ) -> list[Answer]:
        """What the base model answers without the adaptation; else as :meth:`predict`."""
        return self._answers(questions, None, cancel)

    def save(self, folder: str | Path, replace: bool = True) -> Path:
        """Write a folder that PEFT, Transformers, lm-evaluation-harness and vLLM open as an adapter.

        What these do not know, several adapters that answer together, examples in the prompt and the vector δ, is
        written beside it (``degaml.json``, ``state/``), and :meth:`open` brings it back.

        Raises:
            CheckpointError: something other than an adaptation is in the folder, or it cannot be written.
            FolderError: somebody else is writing it, or an earlier one is there and ``replace`` is false.
        """
        path, base = Path(folder).expanduser(), self._context.base
        about = SavedAdaptation(
            base_model=base.name,
            base_model_fingerprint=base.fingerprint,
            settings=self._settings,
            more_than_peft=not self.state.is_one_adapter,
            report=self.report,
            labels=self.labels,
        )
        save_adaptation(self.state, about, path, replace)
        return path

    def explain(self) -> str:
        """Why this strategy: where the task stood, what was proposed, what it scored, and what was done."""
        return explain(self.report)

    def _plain(self, questions: Iterable[str | Question | Example]) -> list[Question]:
        labelled = (self._with_labels(one) if isinstance(one, str) else one for one in questions)
        return super()._plain(labelled)

    def _with_labels(self, text: str) -> Question:
        if not self.labels:
            raise SessionError(
                f"{text[:80]!r} has no options, and the examples that this was adapted to had options of their own: "
                f"tasks.pasted.read_question makes a question of a text and options"
            )
        return read_question(text, self.labels)


@contextmanager
def _cancellable() -> Iterator[None]:
    try:
        yield
    except Interruption:
        raise AdaptationCancelled(
            "the work was stopped, as was asked for; nothing of it is left"
        ) from None


def _answer(question: Question, scores: Sequence[float]) -> Answer:
    if not np.isfinite(scores).all():
        raise SessionError(
            f"the scores of the options of {question.prompt[:80]!r} are not finite: the adapter's weights are too "
            f"large for the base model; adapt again, or load another adapter"
        )
    best = max(range(len(scores)), key=scores.__getitem__)
    shares = softmax(np.asarray(scores, dtype=np.float64))
    return Answer(best, question.options[best], tuple(float(share) for share in shares))


def _examples(given: Iterable[Example]) -> list[Example]:
    fix = "give Example objects: tasks.pasted.read_file reads files, tasks.example.make_example makes single ones"
    return _checked(given, Example, "example", fix)


def _checked(given: Iterable[Any], kinds: Any, noun: str, fix: str) -> list[Any]:
    """All of them, each of one of the kinds.

    Raises:
        SessionError: one is something else.
    """
    found = list(given)
    for place, one in enumerate(found):
        if not isinstance(one, kinds):
            raise SessionError(f"{noun} {place} is a {type(one).__name__}; {fix}")
    return found


def _whole(value: Any, name: str, wanted: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise SessionError(f"{name} is {value!r}; give {wanted}") from None


def _deal(
    examples: Sequence[Example], held_out: int | Sequence[Example], seed: int
) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """Support and held-out examples, and what the user should know of them; no question is on both sides."""
    warnings: list[str] = []
    if isinstance(held_out, int):
        if held_out < 0:
            raise SessionError(f"{held_out} examples cannot be held out; give 0 or more")
        support, asked = _split(examples, held_out, seed)
        if len(asked) < held_out:
            warnings.append(
                f"{len(asked)} examples are held out and not {held_out}: equal questions stay on one side"
            )
    else:
        support = list(examples)
        known = {key for one in support for key in _keys(one)}
        asked = [one for one in held_out if known.isdisjoint(_keys(one))]
        if len(asked) < len(held_out):
            warnings.append(
                f"{len(held_out) - len(asked)} of {len(held_out)} held-out questions are among the examples, and are "
                f"left out"
            )
            if not asked:
                raise SessionError(
                    "every held-out question is among the examples too, so nothing would be measured; hold out others"
                )
    if len(support) < MIN_SUPPORT:
        raise SessionError(
            f"{len(support)} example(s) are left to adapt to, and {MIN_SUPPORT} are needed; give more examples, or "
            f"hold out fewer"
        )
    repeated = len(support) - len({one.prompt for one in support})
    if repeated:
        warnings.append(f"{repeated} of {len(support)} examples repeat a question")
    return support, asked, tuple(warnings)


def _split(
    examples: Sequence[Example], held_out: int, seed: int
) -> tuple[list[Example], list[Example]]:
    groups = _same_questions(examples)
    order = np.random.default_rng(derive_seed(seed, "held out")).permutation(len(groups))
    chosen: set[int] = set()
    for number in order:
        if len(chosen) + len(groups[number]) <= held_out:
            chosen.update(groups[number])
    support = [one for place, one in enumerate(examples) if place not in chosen]
    return support, [one for place, one in enumerate(examples) if place in chosen]


def _same_questions(examples: Sequence[Example]) -> list[set[int]]:
    """Places of examples that ask the same: one prompt, or one question with one right answer among other options."""
    groups, first = DisjointSet(range(len(examples))), dict[tuple[str, ...], int]()
    for place, one in enumerate(examples):
        for key in _keys(one):
            groups.merge(place, first.setdefault(key, place))
    # in the order of their first examples
    return list(groups.subsets())


def _keys(example: Example) -> tuple[tuple[str, ...], ...]:
    return (example.prompt,), (example.question, example.options[example.gold])
