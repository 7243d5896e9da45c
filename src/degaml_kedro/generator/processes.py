"""One process or several: what a launcher started, joined for training and left in good time."""

from __future__ import annotations

import atexit

from accelerate import Accelerator


def join_processes(cpu: bool) -> Accelerator:
    """The accelerator of this process, which leaves its group before the interpreter is taken down.

    A process that exits inside a group of gloo's (several processes on the CPU) leaves threads of it behind. If one of
    these lets go of a tensor while Python is being taken down, the whole process is aborted, after all of its work.
    """
    accelerator = Accelerator(cpu=cpu)
    if accelerator.num_processes > 1:
        atexit.register(accelerator.end_training)
    return accelerator
