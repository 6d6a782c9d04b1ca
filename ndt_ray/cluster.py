"""Ray, started on this machine or joined, with the settings that a sweep needs.

Ray is imported only inside functions: its settings are environment variables that it reads once.
"""

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ndt_ray.errors import ClusterError

log = logging.getLogger(__name__)

ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_DEDUP_LOGS": "0",  # deduplication loses lines of parallel trials
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: no output of Tune's own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a spec keep their meaning
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store is the record
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a reused actor waits for the last trial's thread (default 2 s)
    "OMP_NUM_THREADS": "1",  # one thread a worker, part of the numerics fingerprint
}
"""Settings of Ray and Tune; what the user has set already stays."""


@contextmanager
def start(
    address: str | None = None, cpus: int | None = None, gpus: int | None = None, object_store: int = 256 * 2**20
) -> Iterator[str]:
    """Join the Ray cluster at `address`, or start one on this machine, and yield its address.

    Only what was started here is shut down: a process that is part of a cluster already stays in it.
    A local cluster has `cpus` workers (as many as cores by default), asks for a token that only this process and its
    children know, and writes nothing to the home folder. `object_store` is in bytes; measurements never travel
    through it.

    Raises ClusterError when the cluster cannot be reached or started.
    """
    if joined():
        yield _address()
        return
    with _settings(local=address in (None, "local")):
        _init(address, cpus, gpus, object_store)
        import ray

        try:
            yield _address()
        finally:
            ray.shutdown()


def joined() -> bool:
    """Whether this process is part of a Ray cluster already; imports nothing to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def draining() -> bool:
    """Whether the node of this worker is about to go away: time to commit and stop. Costs a millisecond.

    False outside a cluster. Ray has no public call for this; one that lacks the private one is never draining.
    """
    if not joined():
        return False
    import ray

    client = ray._private.worker.global_worker.gcs_client
    ask = getattr(client, "get_draining_nodes", None)
    return ask is not None and ray.get_runtime_context().get_node_id() in ask()


def _address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def _settings(local: bool) -> Iterator[None]:
    """The environment that Ray reads, put back afterwards; all but the token, which Ray reads once a process."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if local and not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        if "ray" not in sys.modules:  # imported before, it has read the mode already, and turns it on itself
            os.environ["RAY_AUTH_MODE"] = "token"
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def _keep_stdout_clean() -> None:
    """What Ray's daemons complain of (a worker that was killed, say) Ray prints on stdout, where data belongs."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):  # private: a version that has it no more may print
        worker.print_to_stdstream = lambda data, ignore_prefix: log.info("%s: %s", data["pid"], data["lines"])


def _init(address: str | None, cpus: int | None, gpus: int | None, object_store: int) -> None:
    import ray

    _keep_stdout_clean()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address in (None, "local"):
        # Never a bare ray.init(): it would join whatever cluster this machine last started.
        local: dict[str, Any] = {
            "address": "local",
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": object_store,
        }
        try:
            ray.init(**local, include_dashboard=False, **common)
        except Exception as error:
            raise ClusterError(
                f"Ray did not start on this machine: {first_line(error)} - see the newest session_*/logs below"
                f" {tempfile.gettempdir()}/ray, or run without it (--executor inline)"
            ) from error
        return
    if cpus is not None or gpus is not None:
        raise ClusterError(
            f"the cluster at {address} has the workers it has, but got ({cpus=}, {gpus=}) - leave them out,"
            " or leave --address out to start a cluster here"
        )
    try:
        _knock(address)
        ray.init(address=address, **common)
    except Exception as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {first_line(error)} - check `ray status` on the head,"
            " that Ray and Python are the same versions here and there, and RAY_AUTH_TOKEN_PATH if it asks for a token"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at `address`: Ray itself retries a refused connection for over ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():  # not so: "auto"
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
