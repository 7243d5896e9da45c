"""Folders that are either the old one or the whole new one, never a part."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from degaml_kedro.common.errors import DegamlError

# says who holds a folder, for as long as it is held
LOCK_FILE = ".run.lock"
# of the system, for ending the workers of a process that was killed
_UNLOCK_SECONDS = 3.0


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
    temporary, earlier = path.with_name(f".{mark}.tmp"), path.with_name(f"earlier.{mark}")
    with _locked_empty(temporary, path):
        # a writer was killed between two renames
        if earlier.exists() and not path.exists():
            os.rename(earlier, path)
        shutil.rmtree(earlier, ignore_errors=True)
        try:
            with named_errors(path):
                yield temporary
                set_modes(temporary)
                # a power failure must not leave the name with empty files behind it
                for part in (*temporary.rglob("*"), temporary):
                    sync(part)
                _put(temporary, path, earlier if replace else None)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(path.parent)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Errors of the system in the block name the path: a full disk is met by a write, which does not say of what."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        # it tells the system's error in its text alone
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def sync(path: Path) -> None:
    """Bring a file, or the renames in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_modes(folder: Path) -> None:
    """Give weights, which safetensors writes for their owner alone, the mode that the umask gave the folder."""
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(folder.stat().st_mode & 0o666)


def _put(new: Path, path: Path, earlier: Path | None) -> None:
    """Rename a whole folder; what is there is renamed to ``earlier`` first, and then removed."""
    try:
        # onto nothing or an empty folder
        os.rename(new, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if earlier is None:
            raise FolderError(
                f"{path} is there by now, and is left alone; name another folder, or have it replaced (`--force`, "
                f"`replace=True`)"
            ) from None
        os.rename(path, earlier)
        try:
            os.rename(new, path)
        except BaseException:
            os.rename(earlier, path)
            raise
        shutil.rmtree(earlier, ignore_errors=True)


def _locked_empty(folder: Path, path: Path) -> ExitStack:
    """Make an empty folder that no other writer of ``path`` has until the stack is closed.

    The system unlocks a killed writer's: what that one left is removed here.
    """
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        # not found: its writer came to an end just now
        with suppress(FileNotFoundError), ExitStack() as stack:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            _lock(descriptor, path)
            if os.path.samestat(os.fstat(descriptor), folder.lstat()):
                if not any(folder.iterdir()):
                    return stack.pop_all()
                shutil.rmtree(folder)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderError(
            f"{path} is being written by somebody else; wait for that to end, or name another folder"
        ) from None
    except OSError:
        # a file system without locks
        pass


@contextmanager
def held_folder(folder: Path, holder: str) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; the system lets go of it where this one is killed.

    Args:
        folder: is made where it is not there.
        holder: what the others are told is running.

    Raises:
        FolderError: another process holds it.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    began = time.monotonic()
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() - began < _UNLOCK_SECONDS:
                    time.sleep(0.1)
                    continue
                file.seek(0)
                raise FolderError(
                    f"{folder} is in use by {file.read().strip() or 'another process'}; wait for it to end, or give "
                    f"this run another folder ('data' in conf/ENV/globals.yml)"
                ) from None
            except OSError:
                # a file system without locks
                pass
            # else its holder came to an end just now, and removed it
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()} ({holder})\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            # a worker process may have it open, too
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def own_prefix(parent: Path, name: str) -> str:
    """The beginning of names in a folder for this process alone; what killed ones left there is removed."""
    of_host = f"{name}-{platform.node()}-"
    for left in parent.glob(f"{glob.escape(of_host)}*"):
        process = left.name.removeprefix(of_host).partition("-")[0]
        if process.isdecimal() and is_gone(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    return f"{of_host}{os.getpid()}-"


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
