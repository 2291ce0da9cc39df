"""Makes Linux look to this project like a system that lacks what Windows lacks.

Python imports this file at its start where its folder is in PYTHONPATH, in all processes that are started from there:

    PYTHONPATH=tests/other_system python -m pytest -m "not slow"

Modules, functions and signals that Windows lacks are hidden from the project and its tests, not from the standard
library and installed packages, which ask for the name of the system. Processes are started by `spawn` alone. Files
follow the rules of Windows: no name that it reserves, no rename or removal of a file that this process has open, no
rename over a folder, no descriptor of a folder, no fsync of what is open for reading only.
"""

import builtins
import errno
import fcntl
import multiprocessing
import multiprocessing.context
import multiprocessing.popen_spawn_posix
import os
import re
import signal
import stat
import subprocess
import sys
import sysconfig
from types import FrameType, ModuleType

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "posix"}
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}  # those that Windows has
SIGNAL_FUNCTIONS = {"alarm", "setitimer", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "sigwait"}
OS_FUNCTIONS = {
    *("fork", "forkpty", "register_at_fork", "posix_spawn", "posix_spawnp", "wait3", "wait4", "WIFSIGNALED"),
    *("WTERMSIG", "WNOHANG", "killpg", "setsid", "getsid", "getpgid", "setpgid", "getpgrp", "memfd_create"),
    *("MFD_CLOEXEC", "pread", "pwrite", "preadv", "pwritev", "posix_fadvise", "POSIX_FADV_DONTNEED", "posix_fallocate"),
    *("fdatasync", "sync", "sendfile", "statvfs", "fstatvfs", "sched_getaffinity", "sched_setaffinity", "nice"),
    *("getpriority", "sysconf", "getuid", "geteuid", "getgid", "getegid", "chown", "lchown", "mkfifo", "mknod"),
    *("uname", "getloadavg", "openpty", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_DSYNC"),
    *("O_TMPFILE", "O_DIRECT"),
}  # fmt: skip
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
SYSTEM_FOLDERS = ("/proc/", "/dev/", "/sys/")


def is_library(file: str) -> bool:
    """Whether code of this file may see all of Linux."""
    return file.startswith((*LIBRARIES, "<frozen")) or file == __file__


class Hiding(ModuleType):
    """A module some of whose names are there for libraries only."""

    def __getattr__(self, name: str) -> object:
        hidden = object.__getattribute__(self, "__dict__")["__hidden__"]
        if name in hidden and is_library(sys._getframe(1).f_code.co_filename):
            return hidden[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on this system")


def hide(module: ModuleType, names: set[str]) -> None:
    """Take the names from the module, for all but libraries."""
    names = {name for name in names if name in vars(module)}
    module.__hidden__ = {name: vars(module).pop(name) for name in names}
    module.__class__ = Hiding


def importing(name: str, *rest: object, **options: object) -> ModuleType:
    """The import statement: some modules are there for libraries only."""
    if name in MODULES and not is_library(sys._getframe(1).f_code.co_filename):
        raise ModuleNotFoundError(f"No module named {name!r} on this system", name=name)
    return plain_import(name, *rest, **options)


def begin_process(self: subprocess.Popen, *arguments: object, **options: object) -> None:
    """subprocess.Popen as on Windows, for what the project starts."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_code.co_filename == subprocess.__file__:
        frame = frame.f_back
    refused = [name for name in ("pass_fds", "preexec_fn") if options.get(name)]
    if refused and not is_library(frame.f_code.co_filename if frame else ""):
        raise ValueError(f"{refused[0]} is not supported on this system")
    plain_begin(self, *arguments, **options)


def fsync(file: object) -> None:
    """Windows brings only what can be written to the disk."""
    descriptor = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    plain_fsync(descriptor)


def keep_rules(event: str, arguments: tuple) -> None:
    """The rules of Windows for files, where Python is about to do something with one."""
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, mode, flags = os.path.abspath(os.fsdecode(arguments[0])), arguments[1], arguments[2]
        if mode is None and not flags & getattr(os, "O_TMPFILE", 0) and os.path.isdir(path) and not is_internal():
            raise PermissionError(errno.EACCES, "a folder cannot be opened on this system", path)
        if flags & os.O_CREAT:
            refuse_name(path)
    elif event == "os.mkdir":
        refuse_name(os.path.abspath(os.fsdecode(arguments[0])))
    elif event == "os.remove":
        refuse_use(arguments[0])
    elif event == "os.rename":
        source, target = arguments[:2]
        refuse_name(os.path.abspath(os.fsdecode(target)))
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "a folder is in the way", target)
        refuse_use(source)
        refuse_use(target)


def is_internal() -> bool:
    """Whether os.open is called by a library: shutil.rmtree walks by descriptors of folders where it can."""
    return is_library(sys._getframe(2).f_code.co_filename)


def refuse_name(path: str) -> None:
    """Raise the error of Windows for a path that it cannot have."""
    for name in path.split("/")[1:] if not path.startswith(SYSTEM_FOLDERS) else ():
        if RESERVED.fullmatch(name) or name.endswith((".", " ")) or re.search(r'[<>:"|?*\\\x00-\x1f]', name):
            raise OSError(errno.EINVAL, "a name that this system cannot have", path)


def refuse_use(path: str | bytes | os.PathLike) -> None:
    """Raise PermissionError for a file that this process has open, or a folder with such a file in it."""
    path = os.path.abspath(os.fsdecode(path))
    if path.endswith(".lock") or path.startswith(SYSTEM_FOLDERS) or is_internal_temporary(path):
        return  # a lock is removed while it is held where the system lets one; Windows has another way
    if any(used == path or used.startswith(path + "/") for used in files_in_use()):
        raise PermissionError(errno.EACCES, "another process uses the file (this one does)", path)


def is_internal_temporary(path: str) -> bool:
    """Sockets and anonymous files of Python's own."""
    return os.path.basename(path).startswith(("pymp-", "listener-", "sock-")) or "/pymp-" in path


def files_in_use() -> set[str]:
    """Paths of the files that this process has open or mapped."""
    used = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISREG(os.stat(f"/proc/self/fd/{descriptor}").st_mode):
                used.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the descriptor of the listing itself
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        used |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if len(line.split(maxsplit=5)) == 6}
    return used


plain_import, plain_begin, plain_fsync = builtins.__import__, subprocess.Popen.__init__, os.fsync
builtins.__import__ = importing
subprocess.Popen.__init__ = begin_process
os.fsync = fsync
hide(os, OS_FUNCTIONS)
hide(signal, {name for name in vars(signal) if name.startswith("SIG") and name.isupper()} - SIGNALS | SIGNAL_FUNCTIONS)
for name in ("SIG_DFL", "SIG_IGN"):
    setattr(signal, name, signal.__hidden__.pop(name))
for method in ("fork", "forkserver"):
    del multiprocessing.context._concrete_contexts[method]
multiprocessing.set_start_method("spawn")
multiprocessing.get_all_start_methods = lambda: ["spawn"]
sys.addaudithook(keep_rules)
