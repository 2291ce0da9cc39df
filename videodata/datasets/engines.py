"""Shares of one preparation on the machines of an engine that is there already: Ray, Dask, Spark, or this machine.

An engine gets one function and the numbers 1 to n, and calls it once for each of them somewhere. It finds its cluster
by its own means (RAY_ADDRESS, DASK_SCHEDULER_ADDRESS, spark-submit --master); without one it starts on this machine.
A share whose process died is tried again by Ray, Dask and Spark, and continues where the journal of its output ends.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from types import ModuleType

from videodata.errors import UserError, said_by
from videodata.files import environment
from videodata.prepare import available_cores

logger = logging.getLogger(__name__)
TRIES = 4  # of a share whose process dies: what Ray, Dask and Spark do by default on a cluster

Share = Callable[[int], list[str]]  # does share number k and gives its report, line by line


@dataclass(frozen=True)
class Outcome:
    """How share `number` ended: its report, and the one line that says what was wrong."""

    number: int
    lines: list[str]
    error: str | None = None


def attempt(share: Share, number: int) -> Outcome:
    """What an engine calls. Errors that a user can mend are values: each engine would wrap them in its own traceback,
    and try again what fails in the same way each time.
    """
    try:
        return Outcome(number, share(number))
    except UserError as error:
        return Outcome(number, [], str(error))


def run_shares(engine: str, share: Share, count: int, cores: int) -> Iterator[Outcome]:
    """Have the engine call `share` with 1 to `count`, each on `cores` cores; outcomes come as shares end.

    share must be a function of a module, or a partial of one, so that it can be pickled. Raises UserError where the
    engine is not installed, cannot start, or gave a share up because its processes died.
    """
    yield from ENGINES[engine](partial(attempt, share), count, cores)


def installed(engine: str, module: str, packages: str) -> ModuleType:
    """The module of an engine. Raises UserError that names the pip command."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--engine {engine} needs the package {module} ({error}): pip install {packages}") from error


def gave_up(engine: str, error: Exception) -> UserError:
    """The error of an engine whose processes died too often."""
    return UserError(
        f"--engine {engine}: a share was given up because its processes died ({type(error).__name__}: "
        f"{said_by(error)}); give each more memory or fewer --workers, and run the same command again: it continues"
    )


def _run_here(call: Callable[[int], Outcome], count: int, cores: int) -> Iterator[Outcome]:
    """As many processes as this machine has room for."""
    at_once = max(1, min(count, available_cores() // cores))
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        futures = [pool.submit(call, number) for number in range(1, count + 1)]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise gave_up("local", error) from error


def _end_with_parent() -> None:
    """Begin a process of the pool: Ctrl-C ends it, and so does the end of the process that waits for its outcomes,
    without which the pool's processes wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def _run_on_ray(call: Callable[[int], Outcome], count: int, cores: int) -> Iterator[Outcome]:
    """One task per share; the connection of the caller, where there is one."""
    ray = installed("ray", "ray", "ray")
    if not ray.is_initialized():
        try:
            ray.init(logging_level=logging.WARNING)
        except Exception as error:
            reason = f"cannot be started, or not reached at RAY_ADDRESS ({said_by(error)})"
            raise UserError(f"--engine ray: {reason}") from error
    # The workers import the function by its name: they must find the project, and the same packages, where it is here.
    task = ray.remote(call.func).options(
        num_cpus=cores, max_retries=TRIES - 1, name=f"prepare {count} shares",
        runtime_env={"env_vars": {"PYTHONPATH": environment()["PYTHONPATH"]}},
    )  # fmt: skip
    waiting = [task.remote(*call.args, number) for number in range(1, count + 1)]
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            yield from ray.get(done)
        except ray.exceptions.RayError as error:
            raise gave_up("ray", error) from error


def _run_on_dask(call: Callable[[int], Outcome], count: int, cores: int) -> Iterator[Outcome]:
    """One task per share, on the scheduler of DASK_SCHEDULER_ADDRESS or on processes of one thread each here."""
    distributed = installed("dask", "distributed", "dask distributed")
    logging.getLogger("distributed").setLevel(logging.WARNING)  # or it tells of each connection
    import dask  # comes with it

    here = {"n_workers": max(1, available_cores() // cores), "threads_per_worker": 1, "dashboard_address": None}
    address = dask.config.get("scheduler-address", None)
    try:
        client = distributed.Client(address) if address else distributed.Client(**here)
    except OSError as error:
        raise UserError(f"--engine dask: no scheduler at {address} ({said_by(error)})") from error
    with client:
        futures = client.map(call, range(1, count + 1), pure=False, retries=0)
        try:
            for _, outcome in distributed.as_completed(futures, with_results=True):
                yield outcome
        except distributed.KilledWorker as error:
            raise gave_up("dask", error) from error


def _run_on_spark(call: Callable[[int], Outcome], count: int, cores: int) -> Iterator[Outcome]:
    """One partition per share, on the master of spark-submit or in processes here."""
    pyspark = installed("spark", "pyspark", "pyspark")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    from py4j.protocol import Py4JError  # comes with it
    from pyspark.errors import PySparkException

    here = max(1, available_cores() // cores)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # its own choice, the first python3, has not our packages
    try:
        settings = pyspark.SparkConf()
        settings.setIfMissing("spark.master", f"local[{here},{TRIES}]")
        settings.setIfMissing("spark.app.name", f"prepare {count} shares")
        settings.setIfMissing("spark.ui.showConsoleProgress", "false")
        settings.set("spark.task.cpus", "1" if settings.get("spark.master").startswith("local") else str(cores))
        settings.setExecutorEnv("PYTHONPATH", environment()["PYTHONPATH"])
        context = pyspark.SparkContext.getOrCreate(settings)
    except (PySparkException, Py4JError, OSError) as error:
        raise UserError(f"--engine spark: cannot be started ({said_by(error)}); it needs Java 17 or newer") from error
    try:
        yield from context.parallelize(range(1, count + 1), count).map(call).collect()
    except Py4JError as error:
        raise gave_up("spark", error) from error
    finally:
        context.stop()


ENGINES: dict[str, Callable[[Callable[[int], Outcome], int, int], Iterator[Outcome]]] = {
    "local": _run_here,
    "ray": _run_on_ray,
    "dask": _run_on_dask,
    "spark": _run_on_spark,
}
