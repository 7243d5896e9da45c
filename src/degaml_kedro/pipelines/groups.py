"""Groups of meta-train tasks: all of them, and all but some, for results on tasks that a generator never saw."""

from __future__ import annotations

from dataclasses import dataclass

from degaml_kedro.parameters import ProjectParameters


@dataclass(frozen=True)
class Group:
    """What one generator learns from.

    Attributes:
        tasks: the meta-train tasks it sees.
        left_out: those it does not.
        own_start: its trajectories start from a pooled warm-up of its own, without the left-out tasks.
    """

    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    own_start: bool

    @property
    def label(self) -> str:
        """``all``, or ``without_a_b``."""
        return f"without_{'_'.join(self.left_out)}" if self.left_out else "all"

    def name(self, dataset: str) -> str:
        """A dataset's name in this group."""
        return f"{self.label}.{dataset}" if self.left_out else dataset

    @property
    def pool(self) -> str:
        """The pooled warm-up's run."""
        return self.name("pool")

    @property
    def suffix(self) -> str:
        """What tells this group's nodes of a task from those of all tasks."""
        return f"_{self.label}" if self.left_out else ""

    def trajectory_of(self, task: str) -> str:
        """A task's trajectory run: the left-out tasks have one too, to measure errors on."""
        return f"{self.label}.{task}" if self.own_start else task


def groups(parameters: ProjectParameters) -> list[Group]:
    """All meta-train tasks, then one group for every entry of ``generator.leave_out``."""
    found = [Group(parameters.meta_train, (), False)]
    if parameters.generator is not None and parameters.needs_generator:
        from_pool = parameters.trajectory.start == "pooled_warmup"
        for left_out in parameters.generator.leave_out:
            rest = tuple(task for task in parameters.meta_train if task not in left_out)
            found.append(Group(rest, left_out, from_pool))
    return found
