"""A run in an object store: requests and answers that get lost, a process that is killed at one, and several writers.

The store is moto, an S3 server in a process of its own; between it and a job stands the proxy. Each point has a prefix
of its own.
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

from faults import proxy
from faults.calls import PATIENCE, WORDS, apart
from faults.proxy import Proxy, Remote
from faults.shim import Shim
from faults.work import JOBS, MODES, FaultError, Job, Manager, Mode, fill, go_on, look, tidy, tree
from statedict.errors import RunError, StateDictError
from statedict.runs.lock import LEASE
from statedict.runs.lock import _held as held

BUCKET = "faults"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "STATEDICT_TIMEOUT": "1",
    "STATEDICT_RETRIES": "1",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to the n-th request.

    Attributes:
        name: in the matrix.
        action: one of `proxy.ACTIONS`.
        lasts: whether it happens to all that follow, too.
    """

    name: str
    action: str
    lasts: bool = False

    @property
    def kills(self) -> bool:
        """Whether the process ends."""
        return self.action.startswith("kill")


TROUBLES = (
    Trouble("a store: kill -9 before a request", "kill"),
    Trouble("a store: kill -9 after a request, before its answer", "kill after"),
    Trouble("a store: the answer is lost, once", "answer lost"),
    Trouble("a store: the request is lost, once", "request lost"),
    Trouble("a store: 503, once", "refused"),
    Trouble("a store: 503 for what was done, once", "refused and done"),
    Trouble("a store: the answer is late, once", "slow"),
    Trouble("a store: unreachable from there on", "request lost", lasts=True),
)
# a store replaces object by object: while one is replaced the one before it is the newest
_MORE = {"a save over the newest (`overwrite`)": ((2, 2),)}
PAIRS = tuple(
    (replace(job, latest=(*_MORE.get(job.name, ()), *job.latest)), mode)
    for job, mode in itertools.chain(((JOBS[1], MODES[0]),), zip(JOBS, itertools.cycle(MODES), strict=False))
)

_server: list[tuple[subprocess.Popen[bytes], str]] = []
_numbers = itertools.count()


def stop() -> None:
    """End the server, if it was started."""
    while _server:
        process, _ = _server.pop()
        process.terminate()
        process.wait()


def _address() -> str:
    """Of the server; it is started before the first process forks."""
    if not _server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
        clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        command = [sys.executable, "-W", "ignore", "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean)
        _server.append((process, f"127.0.0.1:{port}"))
        for _ in range(1200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        _ask("PUT", "")
    return _server[0][1]


def _ask(method: str, key: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection(_address(), timeout=30)
    try:
        connection.request(method, f"/{BUCKET}{key}", body, {"Authorization": "AWS testing:testing"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise FaultError(f"the server itself: {answer.status} {data[:200]!r}")
        return data
    finally:
        connection.close()


@contextmanager
def _run(job: Job | None, mode: Mode) -> Iterator[tuple[str, Proxy]]:
    """The URL of a run as the job finds it, and a proxy that does not serve yet."""
    prefix = f"{os.getpid()}-{next(_numbers)}/run"
    for name, data in _template(job, mode).items() if job is not None and job.there else ():
        _ask("PUT", f"/{prefix}/{name}", data)
    found = Proxy(_address())
    try:
        yield f"s3://{BUCKET}/{prefix}", found
    finally:
        found.server_close()


@cache
def _template(job: Job, mode: Mode) -> dict[str, bytes]:
    prefix = f"{os.getpid()}-{next(_numbers)}/run"
    server = Proxy(_address())
    try:
        _apart(server, lambda _: fill(f"s3://{BUCKET}/{prefix}", job, mode))
    finally:
        server.server_close()
    names = re.findall(r"<Key>(.*?)</Key>", _ask("GET", f"?list-type=2&prefix={prefix}/").decode())
    return {name.removeprefix(f"{prefix}/"): _ask("GET", f"/{name}") for name in names}


def _apart(server: Proxy, work: Callable[[Remote], object]) -> object:
    """What a function returns in a process that reaches the store through a proxy, which serves in this one."""

    def there() -> object:
        os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": server.url})
        return work(Remote(server.url))

    try:
        return apart(there, server.start)
    finally:
        server.shutdown()


def count(job: Job, mode: Mode) -> int:
    """How many requests a job makes that meets no fault."""
    return len(_requests(job, mode))


@cache
def _requests(job: Job, mode: Mode) -> list[str]:
    with _run(job, mode) as (url, server):
        _apart(server, lambda remote: _act(url, job, mode, remote, TROUBLES[0], 0).close())
        return server.requests


def _act(url: str, job: Job, mode: Mode, remote: Remote, trouble: Trouble, n: int) -> Manager:
    manager = None
    if job.begin is not None:
        manager = job.manager(url, mode)
        job.begin(manager, mode)
    remote.arm(trouble.action if n else "nothing", n, "yes" if trouble.lasts else "")
    manager = manager or job.manager(url, mode)
    job.act(manager, mode)
    return manager


def at_request(job: Job, mode: Mode, trouble: Trouble, n: int) -> str:
    """Let the n-th request of a job go wrong; "killed", "told", "in spite of it", or "not reached".

    Raises:
        FaultError: something does not hold.
    """
    with _run(job, mode) as (url, server):
        outcome = _apart(server, lambda remote: _survived(url, job, mode, remote, trouble, n))
        if not trouble.kills:
            if outcome is None:
                raise FaultError("the process was killed")
            return str(outcome)
        server.disarm()
        _apart(server, lambda _: _look_and_go_on(url, job, mode))
        return "not reached" if outcome else "killed"


def _look_and_go_on(url: str, job: Job, mode: Mode) -> None:
    look(url, job, mode)
    go_on(url, job, mode)


def _survived(url: str, job: Job, mode: Mode, remote: Remote, trouble: Trouble, n: int) -> str:
    told: list[Exception] = []
    manager = None
    try:
        manager = _act(url, job, mode, remote, trouble, n)
    except Exception as error:
        told.append(error)
    if not remote.fired and manager is not None:
        manager.close()
    if not remote.fired:
        return "not reached"
    remote.disarm()
    newest = look(url, job, mode)
    for error in told:
        if not isinstance(error, StateDictError):
            raise FaultError(f"the error is a bare {type(error).__name__}: {error}")
        if url not in str(error) or not re.search(f"{WORDS}|the server", str(error)):
            raise FaultError(f"the error does not say which step and where: {error}")
    if not told and newest != job.latest[-1]:
        raise FaultError(f"nothing was said, and the newest is {newest}")
    if told and not trouble.lasts:
        raise FaultError(f"it passes, and was not tried again: {told[0]}")
    go_on(url, job, mode)
    return "told" if told else "in spite of it"


def both(mode: Mode, trouble: Trouble, n: int) -> str:
    """Two processes begin at once, the n-th request goes wrong: one saves, the other is told who does."""
    with _run(None, mode) as (url, server):

        def one(step: int) -> None:
            held.clear()
            with Manager(url, format=mode.format, background=mode.background, existing="continue") as manager:
                manager.save(step, tree(step))
                manager.wait()
                os.write(done, b"s")
                time.sleep(PATIENCE)

        def two(remote: Remote) -> None:
            remote.arm(trouble.action, n)
            children = [_forked(lambda: one(1)), _forked(lambda: one(2))]
            said = os.read(reader, 1) + os.read(reader, 1)
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if sorted(said) != sorted(b"sr"):
                raise FaultError(f"of two writers {said.count(b's')} have saved, {said.count(b'r')} were refused")

        def _forked(work: Callable[[], None]) -> int:
            child = os.fork()
            if not child:
                try:
                    work()
                except RunError as error:
                    os.write(done, b"r" if "process " in str(error) else b"?")
                except BaseException as error:
                    print(error, file=sys.stderr)
                    os.write(done, b"?")
                os._exit(0)
            return child

        reader, done = os.pipe()
        try:
            _apart(server, two)
        finally:
            os.close(reader)
            os.close(done)
        server.disarm()
        _apart(server, lambda _: _after(url, mode, (1, 2)))
    return "held"


def _after(url: str, mode: Mode, steps: tuple[int, ...]) -> None:
    manager = Manager(url, existing="continue", format=mode.format, background=False)
    newest = manager.latest()
    if newest not in steps or manager.steps() != [newest]:
        raise FaultError(f"steps {manager.steps()} are there, and one of {steps} was saved")
    manager.save(9, tree(9))
    manager.close()
    tidy(url)


def stolen(mode: Mode, trouble: Trouble, n: int) -> str:
    """A process does not renew its lease, another one takes over and the n-th request goes wrong: the first is told."""
    with _run(None, mode) as (url, server):

        def first(remote: Remote) -> None:
            reader, writer = os.pipe()
            child = os.fork()  # before obstore is used
            if not child:
                os.read(reader, 1)
                held.clear()
                Shim().clock(LEASE + 1)
                manager = Manager(url, existing="continue", format=mode.format, background=mode.background)
                manager.save(2, tree(2))
                manager.wait()
                os.write(answer, b"s")
                time.sleep(PATIENCE)
            manager = Manager(url, format=mode.format, background=mode.background)
            manager.save(1, tree(1))
            manager.wait()
            os.write(writer, b"x")
            if os.read(answered, 1) != b"s":
                raise FaultError("the second did not save")
            remote.arm(trouble.action, n)
            try:
                manager.save(3, tree(7))
                manager.wait()
            except RunError as error:
                if f"process {child} on" not in str(error):
                    raise FaultError(f"the error does not say who writes: {error}") from error
            else:
                raise FaultError("the lease was another's, and nothing was said")
            try:
                manager.close()
            except RunError:
                pass
            remote.disarm()
            try:
                Manager(url, existing="continue", background=False).save(4, tree(4))
            except RunError:
                pass
            else:
                raise FaultError("the first gave back what was the second's")
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

        answered, answer = os.pipe()
        try:
            _apart(server, first)
        finally:
            os.close(answered)
            os.close(answer)
        _apart(server, lambda _: _in_turn(url, mode))
    return "held"


def _in_turn(url: str, mode: Mode) -> None:
    manager = Manager(url, existing="continue", format=mode.format, background=False)
    target = tree(0)
    if manager.steps() != [1, 2] or manager.restore(target).step != 2 or str(target) != str(tree(2)):
        raise FaultError(f"steps {manager.steps()} are there, and 1 and 2 were saved")
    manager.save(9, tree(9))
    manager.close()
    tidy(url)


SEVERAL: dict[str, tuple[Callable[[Mode, Trouble, int], str], int]] = {
    "a store: two processes begin at once": (both, 24),
    "a store: the lease runs out, and another process has taken over": (stolen, 6),
}
PASSING = [one for one in TROUBLES if not one.kills and not one.lasts]
assert {one.action for one in TROUBLES} <= {*proxy.ACTIONS}
