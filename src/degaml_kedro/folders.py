"""Folders that are either the old one or the whole new one, never a part."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from degaml_kedro.errors import DegamlError


class FolderError(DegamlError):
    """A folder that another writer has, or had first."""


@contextmanager
def replaced_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Fill a temporary folder, then put it in the place of another.

    Args:
        path: the folder; an earlier one there stays until the block has ended without an error.
        replace: whether what is there then is replaced; an empty folder always is.

    Yields:
        An empty folder beside it, to be filled.

    Raises:
        FolderError: somebody else is writing the folder, or it is there and not to be replaced.
        OSError: the folder cannot be made there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # one for all writers of a machine, so that one alone goes on and what a killed one left is found; without the
    # folder's own name, which may be as long as names can be
    mark = hashlib.sha256(os.fsencode(f"{platform.node()}/{path.name}")).hexdigest()[:16]
    temporary = path.with_name(f".{mark}.tmp")
    with _locked_empty(temporary, path):
        aside = _aside(temporary)
        if aside.exists():
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.rename(aside, path)
        try:
            yield temporary
            set_modes(temporary)
            _put(temporary, path, replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def set_modes(folder: Path) -> None:
    """Give weights, which safetensors writes for their owner alone, the mode that the umask gave the folder."""
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(folder.stat().st_mode & 0o666)


def _put(temporary: Path, path: Path, replace: bool) -> None:
    """Rename a whole folder."""
    try:
        # onto nothing or an empty folder, in one step
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not replace:
            raise FolderError(
                f"{path} is there by now, and is left alone; name another folder, or have it replaced (`--force`, "
                f"`replace=True`)"
            ) from None
        # the old one may get the temporary folder's name, which no other writer has before it is removed
        with _locked(path, path):
            shutil.rmtree(_put_aside(temporary, path), ignore_errors=True)


def _put_aside(new: Path, path: Path) -> Path:
    """Where the earlier folder is, once the new one has taken its place."""
    # in one step where the system has that: no kill can come between
    library, names = ctypes.CDLL(None), (os.fsencode(new), os.fsencode(path))
    if hasattr(library, "renameat2"):  # Linux: AT_FDCWD, RENAME_EXCHANGE
        failed = library.renameat2(-100, names[0], -100, names[1], 2)
    else:  # macOS: RENAME_SWAP
        failed = library.renamex_np(*names, 2) if hasattr(library, "renamex_np") else -1
    if not failed:
        return new
    aside = _aside(new)
    os.rename(path, aside)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(aside, path)
        raise
    return aside


def _aside(temporary: Path) -> Path:
    """Where an earlier folder is, in sight, should a writer be killed between two renames."""
    return temporary.with_name(f"earlier{temporary.stem}")


def _locked_empty(folder: Path, path: Path) -> ExitStack:
    """Make an empty folder that no other writer of ``path`` has until the stack is closed.

    The system unlocks a killed writer's: what that one left is removed here.
    """
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        # not found: its writer came to an end just now
        with suppress(FileNotFoundError), ExitStack() as stack:
            descriptor = stack.enter_context(_locked(folder, path))
            if os.path.samestat(os.fstat(descriptor), folder.lstat()):
                if not any(folder.iterdir()):
                    return stack.pop_all()
                shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[int]:
    """A folder's descriptor, on which nobody else has a lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # other errors: a file system without locks
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderError(
                    f"{path} is being written by somebody else; wait for that to end, or name another folder"
                ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def is_gone(process: int) -> bool:
    """Whether no process of this machine has that number any longer; False where the system does not tell."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
