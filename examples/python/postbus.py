#!/usr/bin/env python3
"""A postbus client in one file, written from docs/PROTOCOL.md alone.

It needs Python 3.10 and the msgpack module (Debian: python3-msgpack). As a module:

    with Bus.connect() as bus:
        builds = bus.subscribe("build/#")
        bus.publish_wait("build/done", b"ok")
        print(bus.next(builds, timeout=1))

As a command: postbus.py sub 'build/#', and postbus.py pub build/done ok.

There is no thread behind a Bus: it reads and writes while one of its methods runs, so it
belongs to one thread, and a program that subscribes keeps calling next(). It does not
reconnect: after Closed, connect and subscribe again.
"""

from __future__ import annotations

import argparse
import enum
import os
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

import msgpack

VERSION = 1
SMALL_FRAME = 65_536  # bytes of payload, the limit for all but PUBLISH and MESSAGE
MESSAGE_EXTRA = 20_480  # bytes that those two may have on top of max_message
MAX_PACKET = 65_536  # bytes of one SOCK_SEQPACKET packet
EXIT_NO_BROKER = 69  # as the postbus command has it
CREDIT = 1 << 20  # bytes of a subscription's messages that wait here, unread by the program


class Frame(enum.IntEnum):
    """The frame types."""

    HELLO, WELCOME, PUBLISH, MESSAGE, ACK, ERROR, SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE = range(1, 10)
    UNSUBSCRIBED, TARGET, GAP, PING, PONG, GOODBYE, CREDIT, AWAIT, AWAITED = range(10, 19)


CODES = ["closed", "malformed", "unknown-frame", "version", "too-large", "bad-topic", "bad-filter",
         "no-subscriber", "not-allowed", "limit", "slow", "shutdown", "timeout", "internal",
         "not-found", "exists", "bad-option"]
KINDS = {"unixpacket": socket.SOCK_SEQPACKET, "unix": socket.SOCK_STREAM}
REASONS = ["", "drop-old", "drop-new", "latest", "shutdown"]


class Error(Exception):
    """What the broker said no to: name, of docs/PROTOCOL.md's table of codes, and a sentence."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        self.name = _name(CODES, code)
        super().__init__(f"{self.name}: {text}")


class Refused(Error):
    """One request was refused; the connection goes on."""


class Closed(Error):
    """The connection has ended; with code 0 ("closed") nobody said why."""


class Message(NamedTuple):
    """A message as a subscriber gets it; the ids are the kernel's word on its publisher."""

    seq: int
    time_ns: int
    uid: int
    gid: int
    pid: int
    topic: str
    headers: dict[str, str]
    redelivered: bool
    body: bytes


class Gap(NamedTuple):
    """Here count messages were dropped, their seq between first and last."""

    first: int
    last: int
    count: int
    reason: str


class Receipt(NamedTuple):
    """How many subscriptions and queues took a message."""

    subscribers: int
    queues: int


class Totals(NamedTuple):
    """What became of a subscription's messages, told at its end."""

    delivered: int
    dropped: int
    discarded: int


@dataclass
class Subscription:
    """A subscription, made by Bus.subscribe: it gets what came after seq."""

    number: int
    credit: int
    seq: int = 0
    totals: Totals | None = None  # once it has ended
    waiting: deque[tuple[Message | Gap, int]] = field(default_factory=deque)  # with frame size
    consumed: int = 0  # bytes not yet given back as credit
    draining: bool = False


class Bus:
    """One connection to a broker.

    A timeout is in seconds: None waits for ever, 0 not at all, TimeoutError tells that it
    passed. Every method but close raises Closed once the connection has ended, next() after
    it has given what came before.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a connected socket; Bus.connect is the usual way here."""
        sock.setblocking(False)
        self._sock = sock
        self._max_packet = MAX_PACKET
        self._max_payload = SMALL_FRAME
        self._out: deque[bytearray] = deque()  # packets to send
        self._room = 0  # bytes that the last of them still takes
        self._in = bytearray()
        self._ended: Closed | None = None
        self._subscriptions: dict[int, Subscription] = {}
        self._target: Subscription | None = None
        self._last_number = 0  # of subscriptions and tokens
        self._asked: set[tuple[str, int]] = set()
        self._answers: dict[tuple[str, int], Any] = {}  # to those
        self._published = 0
        self._open: deque[tuple[int, int]] = deque()  # publishes without verdict: number, size
        self._open_bytes = 0
        self._refusals: list[Refused] = []  # of publishes that nobody waited for
        self.welcome: dict[str, Any] = {}  # the broker's WELCOME

    @classmethod
    def connect(cls, address: str | None = None, name: str = "postbus.py",
                timeout: float | None = 10) -> Bus:
        """Connects to unixpacket:PATH, unix:PATH or a bus directory and waits for WELCOME.

        Without an address: $POSTBUS_ADDRESS, then the user's bus, then the system's.
        Raises ConnectionError, naming each path tried, when no broker answers.
        """
        deadline = _deadline(timeout)
        bus = cls(_connect(address, deadline))
        try:
            bus._queue(Frame.HELLO, {"version": VERSION, "max_packet": MAX_PACKET, "client": name})
            bus.welcome = bus._answer(("welcome", 0), deadline)
        except BaseException:
            bus._sock.close()
            raise
        bus._max_packet = bus.welcome["max_packet"]
        bus._max_payload = max(SMALL_FRAME, bus.welcome["max_message"] + MESSAGE_EXTRA)
        return bus

    def close(self, timeout: float | None = 10) -> None:
        """Leaves in order: what was published before reaches the broker. May be repeated."""
        try:
            if not self._ended:
                self._queue(Frame.GOODBYE, {})
            self._until(lambda: False, _deadline(timeout))  # to the end of what the broker sends
        except (Closed, TimeoutError):
            self._ended = self._ended or Closed(0, "this client closed the connection")
            self._sock.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- publishing ---

    def publish(self, topic: str, body: bytes = b"", headers: dict[str, str] | None = None,
                require_subscriber: bool = False, timeout: float | None = None) -> None:
        """Sends a message and waits only while the window is full; flush() tells its fate."""
        self._publish(topic, body, headers, require_subscriber, _deadline(timeout))
        self._step(0)

    def publish_wait(self, topic: str, body: bytes = b"", headers: dict[str, str] | None = None,
                     require_subscriber: bool = False, timeout: float | None = None) -> Receipt:
        """Sends a message and waits for the broker's verdict; raises Refused if it is a no."""
        deadline = _deadline(timeout)
        self._publish(topic, body, headers, require_subscriber, deadline)
        self._queue(Frame.PING, self._number())  # brings the verdict at once
        return self._answer(("publish", self._published), deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Waits for the verdict of everything published; raises the first refusal among them."""
        if self._open:
            self._queue(Frame.PING, self._number())
        self._until(lambda: not self._open, _deadline(timeout))
        if self._refusals:
            first, self._refusals = self._refusals[0], []
            raise first

    def _publish(self, topic: str, body: bytes, headers: dict[str, str] | None,
                 require_subscriber: bool, deadline: float | None) -> None:
        limit, window = self.welcome["max_message"], self.welcome["window"]
        if len(body) > limit:  # far above it the broker would end the connection
            raise Refused(CODES.index("too-large"), f"a body of {len(body)} bytes; "
                          f"this broker takes at most {limit}")
        options = {"require_sub": True} if require_subscriber else None
        frame = _frame([Frame.PUBLISH, topic, headers or None, options, bytes(body)])
        self._until(lambda: not self._open or self._open_bytes + len(frame) <= window, deadline)
        self._published += 1
        self._open.append((self._published, len(frame)))
        self._open_bytes += len(frame)
        self._pack(frame)

    # --- subscribing ---

    def subscribe(self, *filters: str, policy: str = "drop-old", messages: int | None = None,
                  size: int | None = None, no_local: bool = False, credit: int = CREDIT,
                  timeout: float | None = None) -> Subscription:
        """Opens a subscription; when this returns, it sees every later message.

        messages and size (in bytes) bound what the broker buffers for it, credit (in bytes)
        what lies here unread; beyond both, policy decides.
        """
        sub = Subscription(self._number(), credit)
        options = {"sub": sub.number, "filters": filters, "policy": policy, "messages": messages,
                   "bytes": size, "no_local": no_local, "credit": credit}
        self._subscriptions[sub.number] = sub  # messages may come right behind SUBSCRIBED
        self._queue(Frame.SUBSCRIBE, {k: v for k, v in options.items() if v is not None})
        try:
            sub.seq = self._answer(("sub", sub.number), _deadline(timeout))["seq"]
        except Refused:
            del self._subscriptions[sub.number]
            raise
        return sub

    def next(self, sub: Subscription, timeout: float | None = None) -> Message | Gap | None:
        """The next message, or the Gap in its place; None when an ended subscription is empty."""
        self._until(lambda: bool(sub.waiting or sub.totals), _deadline(timeout))
        if not sub.waiting:
            return None
        item, size = sub.waiting.popleft()
        if not sub.draining:
            self._consume(sub, size)
        return item

    def unsubscribe(self, sub: Subscription, drain: bool = False,
                    timeout: float | None = None) -> Totals:
        """Ends a subscription; with drain, next() still gives what the broker had buffered."""
        self._queue(Frame.UNSUBSCRIBE, {"sub": sub.number, "drain": drain})
        if drain:  # credit for what is not read yet too, or the rest would never come
            sub.draining = True
            self._consume(sub, sum(size for _, size in sub.waiting))
        self._answer(("sub", sub.number), _deadline(timeout))
        return sub.totals

    def _consume(self, sub: Subscription, size: int) -> None:
        if not sub.credit or sub.totals or self._ended:
            return
        sub.consumed += size
        if sub.consumed >= max(1, sub.credit // 2):
            self._queue(Frame.CREDIT, sub.number, sub.consumed)
            sub.consumed = 0
            self._write()

    # --- asking ---

    def ping(self, timeout: float | None = None) -> float:
        """Asks whether the broker is there; returns how many seconds the answer took."""
        start, token = time.monotonic(), self._number()
        self._queue(Frame.PING, token)
        self._answer(("token", token), _deadline(timeout))
        return time.monotonic() - start

    def await_subscribers(self, topic: str, subscribers: int = 1,
                          timeout: float | None = None) -> int:
        """Waits until a message to topic would reach that many subscriptions; returns how many."""
        token = self._number()
        self._queue(Frame.AWAIT, {"token": token, "topic": topic, "subscribers": subscribers})
        return self._answer(("token", token), _deadline(timeout))["subscribers"]

    def _number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _answer(self, key: tuple[str, int], deadline: float | None) -> Any:
        """Waits for the frame that answers a request; raises it if it is a refusal."""
        self._asked.add(key)
        try:
            self._until(lambda: key in self._answers, deadline)
        finally:
            self._asked.remove(key)
        answer = self._answers.pop(key)
        if isinstance(answer, Refused):
            raise answer
        return answer

    # --- moving bytes ---

    def _queue(self, *values: Any) -> None:
        self._pack(_frame(values))

    def _pack(self, frame: bytes) -> None:
        """Puts a frame behind others in a packet, or cuts a long one into packets of its own."""
        if self._out and self._room >= len(frame):
            self._out[-1] += frame
            self._room -= len(frame)
            return
        for at in range(0, len(frame), self._max_packet):
            self._out.append(bytearray(frame[at:at + self._max_packet]))
        self._room = max(0, self._max_packet - len(frame))

    def _until(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Reads and writes until ready() holds."""
        while not ready():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._step(left) and left == 0:
                raise TimeoutError("the time is up")

    def _step(self, wait: float | None) -> bool:
        """Waits for the socket, at most that long, and moves what can be moved."""
        if self._ended:
            raise self._ended
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        events = poll.poll(None if wait is None else wait * 1000)
        for _, event in events:
            if event & select.POLLOUT:
                self._write()
            if event & ~select.POLLOUT:
                self._read()
        return bool(events)

    def _write(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                del self._out[0][:sent]
                if not self._out[0]:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._out.clear()  # reading finds the end, and the GOODBYE before it

    def _read(self) -> None:
        try:
            data, _, flags, _ = self._sock.recvmsg(MAX_PACKET + 1)
        except (BlockingIOError, ConnectionResetError):
            return  # a reset is told once, before packets that are still queued
        if not data:
            self._ended = Closed(0, "the broker has closed the connection")
        elif flags & socket.MSG_TRUNC:
            self._refuse("too-large", f"a packet above {MAX_PACKET} bytes")
        self._in += data
        while not self._ended and len(self._in) >= 4:
            size = 4 + int.from_bytes(self._in[:4], "little")
            if not 4 < size <= 4 + self._max_payload:
                self._refuse("too-large", f"a frame of {size - 4} bytes")
            elif len(self._in) < size:
                break
            else:
                payload = bytes(self._in[4:size])
                del self._in[:size]
                self._handle(payload, size)

    def _refuse(self, code: str, text: str) -> None:
        self._queue(Frame.GOODBYE, {"code": CODES.index(code), "text": text})
        self._write()
        self._ended = Closed(CODES.index(code), f"the broker sent {text}")

    # --- frames from the broker ---

    def _handle(self, payload: bytes, size: int) -> None:
        try:
            frame = msgpack.unpackb(payload)
        except (ValueError, msgpack.UnpackException) as err:
            self._refuse("malformed", f"a frame that is not msgpack: {err}")
            return
        match frame:
            case [Frame.MESSAGE, seq, time_ns, uid, gid, pid, topic, headers, info, body]:
                redelivered = bool(info and info.get("redelivered"))
                self._deliver(self._target, Message(seq, time_ns, uid, gid, pid, topic,
                                                    headers or {}, redelivered, body), size)
            case [Frame.TARGET, number]:
                self._target = self._subscriptions.get(number)
            case [Frame.GAP, number, first, last, count, reason]:
                gap = Gap(first, last, count, _name(REASONS, reason))
                self._deliver(self._subscriptions.get(number), gap, 0)
            case [Frame.ACK, upto, subscribers, queues]:
                while self._open and self._open[0][0] <= upto:
                    self._decide(Receipt(subscribers, queues))
            case [Frame.ERROR, dict(error)]:
                refused = Refused(error.get("code", 0), error.get("text", ""))
                if error.get("publish") and self._open:
                    self._decide(refused)  # verdicts keep the order of the publishes
                for kind in ("sub", "token"):
                    self._take_answer((kind, error.get(kind)), refused)
            case [Frame.WELCOME, dict(answer)]:
                self._take_answer(("welcome", 0), answer)
            case [Frame.SUBSCRIBED, {"sub": number} as answer]:
                self._take_answer(("sub", number), answer)
            case [Frame.UNSUBSCRIBED, {"sub": number} as end]:
                if sub := self._subscriptions.pop(number, None):
                    sub.totals = Totals(*(end.get(name, 0) for name in Totals._fields))
                self._take_answer(("sub", number), end)
            case [Frame.PONG, token] | [Frame.AWAITED, {"token": token}]:
                self._take_answer(("token", token), frame[1])
            case [Frame.GOODBYE, dict(why)]:
                self._ended = Closed(why.get("code", 0), why.get("text", ""))
            case _:
                self._refuse("unknown-frame", f"a frame that this client does not know: {frame}")

    def _decide(self, verdict: Receipt | Refused) -> None:
        """Settles the oldest publish that is still open."""
        number, size = self._open.popleft()
        self._open_bytes -= size
        if not self._take_answer(("publish", number), verdict) and isinstance(verdict, Refused):
            self._refusals.append(verdict)

    def _take_answer(self, key: tuple[str, int], answer: Any) -> bool:
        if key in self._asked:  # else nobody waits any longer
            self._answers[key] = answer
        return key in self._asked

    def _deliver(self, sub: Subscription | None, item: Message | Gap, size: int) -> None:
        if sub:
            sub.waiting.append((item, size))
            if sub.draining:
                self._consume(sub, size)


def _name(names: list[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"number {number}"


def _frame(values: Any) -> bytes:
    payload = msgpack.packb(values)
    return len(payload).to_bytes(4, "little") + payload


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _sockets(address: str) -> list[tuple[int, str]]:
    """The sockets that an address stands for, in the order to try them."""
    kind, _, path = address.partition(":")
    if kind in KINDS:
        return [(KINDS[kind], path)]
    if address:
        directories = [address]
    else:
        user = os.environ.get("XDG_RUNTIME_DIR")
        directories = [f"{user}/postbus" if user else f"/tmp/postbus-{os.getuid()}", "/run/postbus"]
    return [(kind, os.path.join(directory, file)) for directory in directories
            for kind, file in zip(KINDS.values(), ("bus.sock", "stream.sock"))]


def _connect(address: str | None, deadline: float | None) -> socket.socket:
    tried = []
    for kind, path in _sockets(address or os.environ.get("POSTBUS_ADDRESS", "")):
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.setblocking(False)
        try:
            while True:
                try:
                    sock.connect(path)
                    return sock
                except BlockingIOError:  # a full backlog, for which poll(2) cannot wait
                    if deadline is not None and time.monotonic() >= deadline:
                        raise
                    time.sleep(0.01)
        except OSError as err:
            sock.close()
            tried.append(f"{path}: {err.strerror or err}")
    raise ConnectionError("no broker answers: " + "; ".join(tried))


# --- the command ---


def _run_sub(bus: Bus, args: argparse.Namespace) -> None:
    sub = bus.subscribe(*args.filters)
    received = 0
    while args.n is None or received < args.n:
        item = bus.next(sub)
        if isinstance(item, Gap):
            print(f"postbus.py: {item.count} messages lost here ({item.reason})", file=sys.stderr)
        else:
            sys.stdout.buffer.write(item.body + b"\n")
            sys.stdout.buffer.flush()
            received += 1


def _run_pub(bus: Bus, args: argparse.Namespace) -> None:
    body = sys.stdin.buffer.read() if args.body is None else os.fsencode(args.body)
    bus.publish_wait(args.topic, body)


def main() -> int:
    parser = argparse.ArgumentParser(description="Publish to a postbus bus, or subscribe.")
    parser.add_argument("-a", "--address", help="unixpacket:PATH, unix:PATH or a bus directory")
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("sub", help="print each body and a newline")
    sub.add_argument("filters", nargs="+", metavar="FILTER")
    sub.add_argument("-n", type=int, help="end after so many messages")
    sub.set_defaults(run=_run_sub)
    pub = commands.add_parser("pub", help="publish BODY, or all of standard input")
    pub.add_argument("topic", metavar="TOPIC")
    pub.add_argument("body", nargs="?", metavar="BODY")
    pub.set_defaults(run=_run_pub)
    args = parser.parse_args()
    try:
        with Bus.connect(args.address) as bus:
            args.run(bus, args)
        return 0
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains of stdout at exit
        return 0
    except (OSError, Error) as err:
        print(f"postbus.py: {err}", file=sys.stderr)
        return EXIT_NO_BROKER if isinstance(err, ConnectionError) else 1


if __name__ == "__main__":
    sys.exit(main())
