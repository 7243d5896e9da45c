"""Folds of the meta-train tasks: all of them, and all but some, for results on tasks that a generator never saw."""

from __future__ import annotations

from dataclasses import dataclass

from degaml_kedro.config.schema import ProjectParameters


@dataclass(frozen=True)
class TaskFold:
    """The meta-train tasks that one generator learns from, and those that are held out from it.

    Attributes:
        own_start: its trajectories start from a pooled warm-up of its own, without the left-out tasks.
        scored: results are measured on its left-out tasks. One that is not only serves the policy's rollouts.
    """

    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    own_start: bool
    scored: bool = True

    @property
    def with_trajectory(self) -> tuple[str, ...]:
        """The tasks whose trajectories it needs: those it learns from, and those that errors are measured on."""
        return (*self.tasks, *self.left_out) if self.scored else self.tasks

    @property
    def label(self) -> str:
        """``all``, or ``without_a_b``."""
        return f"without_{'_'.join(self.left_out)}" if self.left_out else "all"

    def name(self, dataset: str) -> str:
        """A dataset's name in this fold."""
        return f"{self.label}.{dataset}" if self.left_out else dataset

    @property
    def pool(self) -> str:
        """The pooled warm-up's run."""
        return self.name("pool")

    @property
    def suffix(self) -> str:
        """The end of this fold's node names, which tells them from those of all tasks."""
        return f"_{self.label}" if self.left_out else ""

    @property
    def title(self) -> str:
        """The end of a heading: nothing, or `` without a, b``."""
        return f" without {', '.join(self.left_out)}" if self.left_out else ""

    def trajectory_of(self, task: str) -> str:
        """A task's trajectory run: the left-out tasks have one too, to measure errors on."""
        return f"{self.label}.{task}" if self.own_start else task


def writer_input(parameters: ProjectParameters, fold: TaskFold) -> dict[str, str]:
    """A node's input ``writer``: the fold's generator that reads examples, where the family ``written`` is enabled."""
    variant = parameters.writer_variant
    return {} if variant is None else {"writer": fold.name(f"{variant}.generator")}


def task_folds(parameters: ProjectParameters) -> list[TaskFold]:
    """All meta-train tasks, then one fold for every entry of ``generator.leave_out``."""
    found = [TaskFold(parameters.meta_train, (), False)]
    if parameters.generator is not None and parameters.needs_generator:
        from_pool = parameters.trajectory.start == "pooled_warmup"
        for left_out in parameters.generator.leave_out:
            rest = tuple(task for task in parameters.meta_train if task not in left_out)
            found.append(TaskFold(rest, left_out, from_pool))
    return found


def rollout_folds(parameters: ProjectParameters, fold: TaskFold) -> dict[str, TaskFold]:
    """By task of a fold, the fold whose generator never saw that task: the policy's rollouts start from its adapters.

    A generator's adapters for tasks that it saw are better than those for new tasks, and what helps there is not what
    helps here. With ``policy.folds`` 0 rollouts start from the fold's own generator, as in the paper.
    """
    if parameters.policy is None or not parameters.needs_policy or parameters.policy.folds == 0:
        return dict.fromkeys(fold.tasks, fold)
    from_pool = parameters.trajectory.start == "pooled_warmup"
    found = {}
    for number in range(parameters.policy.folds):
        apart = fold.tasks[number :: parameters.policy.folds]
        rest = tuple(task for task in fold.tasks if task not in apart)
        without = TaskFold(rest, (*fold.left_out, *apart), from_pool, scored=False)
        found.update(dict.fromkeys(apart, without))
    return {task: found[task] for task in fold.tasks}


def generator_folds(parameters: ProjectParameters) -> list[TaskFold]:
    """Every fold that a generator is trained on: for results, and for rollouts."""
    found = {fold.label: fold for fold in task_folds(parameters)}
    for fold in list(found.values()):
        for without in rollout_folds(parameters, fold).values():
            found.setdefault(without.label, without)
    return list(found.values())


def search_fold(parameters: ProjectParameters, fold: TaskFold) -> TaskFold:
    """The tasks that baselines are fitted to while a fold's settings are chosen: none that the fold leaves out.

    The choice is made on those of its left-out tasks that are the fold's. Where the policy has folds it is the first of
    them, which shares its pooled warm-up; else the one half of the meta-train tasks or the other, so that folds share
    what is fitted; where neither will do, half of the fold's own tasks; and with a single task the fold itself.
    """
    first = next(iter(rollout_folds(parameters, fold).values()))
    if first != fold:
        return first
    halves = parameters.meta_train[0::2], parameters.meta_train[1::2]
    from_pool, without = parameters.needs_warmup, set(fold.left_out)
    for apart, rest in (halves, halves[::-1]):
        if not without & set(rest) and set(apart) - without:
            return TaskFold(rest, apart, from_pool, scored=False)
    apart, rest = fold.tasks[0::2], fold.tasks[1::2]
    return TaskFold(rest, (*fold.left_out, *apart), from_pool, scored=False) if rest else fold


def warmup_folds(parameters: ProjectParameters) -> list[TaskFold]:
    """Every fold that a pooled warm-up is trained on: generators start from them, and some baselines do."""
    found = {fold.label: fold for fold in generator_folds(parameters)}
    # tasks of development try settings of the weights that are scored: nothing is fitted for the search
    if parameters.baselines_from_pool and not parameters.development:
        for fold in task_folds(parameters):
            searched = search_fold(parameters, fold)
            found.setdefault(searched.label, searched)
    return list(found.values())
