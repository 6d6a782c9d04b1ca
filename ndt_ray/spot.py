"""Watch for the notice that takes a spot instance away, and drain the node: `python -m ndt_ray.spot`.

A notice comes two minutes ahead. A drained node gets no new work and Ray counts what it loses as preempted, which
costs no retry; trials poll for it and commit at once. Reads the metadata service of AWS (IMDSv2); runs on each worker,
next to Ray (cluster.yaml).
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

METADATA = "http://169.254.169.254/latest"
POLL = 5.0
"""Seconds between looks, as AWS recommends."""
GRACE = 100
"""Seconds of the two minutes that are left for the drain once polling and start-up are taken off."""


def interruption(metadata: str = METADATA) -> str | None:
    """The notice as AWS words it, None while there is none; OSError where no metadata service answers."""
    ask_token = urllib.request.Request(
        f"{metadata}/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with urllib.request.urlopen(ask_token, timeout=2) as answer:
        token = answer.read().decode()
    ask = urllib.request.Request(
        f"{metadata}/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(ask, timeout=2) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice, or no spot instance
            error.close()
            return None
        raise


def drain(address: str, notice: str, node_id: str | None = None) -> None:
    """Tell the cluster that this node goes away; CalledProcessError if it does not take it."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"spot interruption: {notice}"]
    command += ["--deadline-remaining-seconds", str(GRACE)]
    env = {**os.environ, "RAY_ADDRESS": address}  # without a node id, `ray` joins the cluster to find its own
    subprocess.run([*command, *(["--node-id", node_id] if node_id else [])], check=True, timeout=60, env=env)


def watch(
    address: str, look: Callable[[], str | None], drained: Callable[[str, str], None], poll: float = POLL
) -> None:
    """Look until there is a notice, then drain, once. A metadata service that fails to answer is asked again."""
    while True:
        try:
            notice = look()
        except OSError as error:
            print(f"spot: the metadata service does not answer: {error}", flush=True)
            notice = None
        if notice is not None:
            print(f"spot: interruption notice {notice}; draining this node", flush=True)
            drained(address, notice)
            return
        time.sleep(poll)


def main(arguments: list[str] | None = None) -> None:
    """The command line of the watcher."""
    parser = argparse.ArgumentParser(prog="python -m ndt_ray.spot", description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True, help="HOST:PORT of the head")
    parser.add_argument("--metadata", default=METADATA, help="URL of the metadata service")
    options = parser.parse_args(arguments)
    watch(options.address, lambda: interruption(options.metadata), drain)


if __name__ == "__main__":
    main()
