#!/usr/bin/env python3
"""A postbus client in one file, written from docs/PROTOCOL.md alone.

It needs Python 3.10 and the msgpack module (Debian: python3-msgpack). As a module:

    with Bus.connect() as bus:
        builds = bus.subscribe("build/#")
        bus.publish_wait("build/done", b"ok")
        print(bus.next(builds, timeout=1))

        bus.declare("jobs", level="disk")
        bus.push("jobs", b"resize 1.jpg")
        worker = bus.consume("jobs")
        job = bus.next(worker)
        bus.ack(worker, job)
        bus.flush()  # now it is gone for good

As a command: postbus.py sub 'build/#', postbus.py pub build/done ok, postbus.py push jobs
'resize 1.jpg' and postbus.py pull jobs.

There is no thread behind a Bus: it reads and writes while one of its methods runs, so it
belongs to one thread, and a program that subscribes or consumes keeps calling next(). It
does not reconnect: after Closed, connect, subscribe and consume again.
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
from typing import Any, Callable, Iterator, NamedTuple

import msgpack

VERSION = 1
SMALL_FRAME = 65_536  # bytes of payload, the limit for all but PUBLISH and MESSAGE
MESSAGE_EXTRA = 20_480  # bytes that those two may have on top of max_message
MAX_PACKET = 65_536  # bytes of one SOCK_SEQPACKET packet
EXIT_NO_BROKER = 69  # as the postbus command has it
PAGE = 100  # messages that one QUEUE frame peeks at
CREDIT = 1 << 20  # bytes of a subscription's messages that wait here, unread by the program


class Frame(enum.IntEnum):
    """The frame types."""

    HELLO, WELCOME, PUBLISH, MESSAGE, ACK, ERROR, SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE = range(1, 10)
    UNSUBSCRIBED, TARGET, GAP, PING, PONG, GOODBYE, CREDIT, AWAIT, AWAITED = range(10, 19)
    QUEUE, QUEUED, CONSUME, SETTLE, SETTLED = range(19, 24)


class Verb(enum.IntEnum):
    """What SETTLE does with a message."""

    ACK, NACK, REJECT, EXTEND = range(1, 5)


CODES = ["closed", "malformed", "unknown-frame", "version", "too-large", "bad-topic", "bad-filter",
         "no-subscriber", "not-allowed", "limit", "slow", "shutdown", "timeout", "internal",
         "not-found", "exists", "bad-option", "full", "conflict", "lease-lost", "store", "draining"]
KINDS = {"unixpacket": socket.SOCK_SEQPACKET, "unix": socket.SOCK_STREAM}
REASONS = ["", "drop-old", "drop-new", "latest", "shutdown"]
LEVELS = ["none", "memory", "kernel", "disk-interval", "disk"]


class Error(Exception):
    """What the broker said no to: name, of docs/PROTOCOL.md's table of codes, and a sentence."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        self.name = _name(CODES, code)
        super().__init__(f"{self.name}: {text}")


class Refused(Error):
    """One request was refused; the connection goes on."""

    def __init__(self, code: int, text: str, lost: list[int] | None = None) -> None:
        super().__init__(code, text)
        self.lost = lost or []  # numbers of messages that were settled in vain, the first 100


class Closed(Error):
    """The connection has ended; with code 0 ("closed") nobody said why."""


class Message(NamedTuple):
    """A message as a subscriber or consumer gets it.

    The ids are the kernel's word on its publisher. info has, of a queue's message, what
    docs/PROTOCOL.md lists under CONSUME: key, id, priority, reason and so on.
    """

    seq: int
    time_ns: int
    uid: int
    gid: int
    pid: int
    topic: str
    headers: dict[str, str]
    info: dict[str, Any]
    body: bytes

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        return self.info.get("redelivered", False)

    @property
    def tries(self) -> int:
        """How often a queue has delivered it, this time included."""
        return self.info.get("tries", 0 if "state" in self.info else 1)  # state: peeked at


class Gap(NamedTuple):
    """Here count messages were dropped, their seq between first and last."""

    first: int
    last: int
    count: int
    reason: str


class Receipt(NamedTuple):
    """How many subscriptions and queues took a message, and the lowest level of those queues."""

    subscribers: int
    queues: int
    level: str


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
    refused: Refused | None = None  # once the queue of a consumer was deleted


class Consumer(Subscription):
    """A consumer of a queue, made by Bus.consume."""


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
        self._refusals: list[Refused] = []  # of publishes that nobody waited for, and settles
        self._settles = 0  # sent
        self._settled = 0  # of those, the number up to which they are confirmed
        self._parts: dict[int, list[dict[str, Any]]] = {}  # of answers in several frames, by token
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
            bus._queue(Frame.HELLO, {"version": VERSION, "features": ["queues"],
                                     "max_packet": MAX_PACKET, "client": name})
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
                require_subscriber: bool = False, timeout: float | None = None,
                **options: Any) -> None:
        """Sends a message and waits only while the window is full; flush() tells its fate.

        The options are for queues, see push().
        """
        self._publish(topic, body, headers, require_subscriber, options, _deadline(timeout))
        self._step(0)

    def publish_wait(self, topic: str, body: bytes = b"", headers: dict[str, str] | None = None,
                     require_subscriber: bool = False, timeout: float | None = None,
                     **options: Any) -> Receipt:
        """Sends a message and waits for the broker's verdict; raises Refused if it is a no."""
        deadline = _deadline(timeout)
        self._publish(topic, body, headers, require_subscriber, options, deadline)
        self._queue(Frame.PING, self._number())  # brings the verdict at once
        return self._answer(("publish", self._published), deadline)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything published has its verdict and everything settled is kept.

        Raises the first refusal among them.
        """
        if self._open:
            self._queue(Frame.PING, self._number())
        self._until(lambda: not self._open and self._settled == self._settles, _deadline(timeout))
        if self._refusals:
            first, self._refusals = self._refusals[0], []
            raise first

    def _publish(self, topic: str, body: bytes, headers: dict[str, str] | None,
                 require_subscriber: bool, options: dict[str, Any],
                 deadline: float | None) -> None:
        limit, window = self.welcome["max_message"], self.welcome["window"]
        if len(body) > limit:  # far above it the broker would end the connection
            raise Refused(CODES.index("too-large"), f"a body of {len(body)} bytes; "
                          f"this broker takes at most {limit}")
        if require_subscriber:
            options = {**options, "require_sub": True}
        frame = _frame([Frame.PUBLISH, topic, headers or None, options or None, bytes(body)])
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
        self._begin(sub, Frame.SUBSCRIBE, timeout, filters=filters, policy=policy,
                    messages=messages, bytes=size, no_local=no_local, credit=credit)
        return sub

    def _begin(self, sub: Subscription, frame: Frame, timeout: float | None,
               **options: Any) -> None:
        self._subscriptions[sub.number] = sub  # messages may come right behind SUBSCRIBED
        given = {key: value for key, value in options.items() if value is not None}
        self._queue(frame, {"sub": sub.number, **given})
        try:
            sub.seq = self._answer(("sub", sub.number), _deadline(timeout))["seq"]
        except Refused:
            self._subscriptions.pop(sub.number, None)
            raise

    def next(self, sub: Subscription, timeout: float | None = None) -> Message | Gap | None:
        """The next message, or the Gap in its place; None when what has ended is empty.

        Raises Refused when the queue of a consumer was deleted.
        """
        self._until(lambda: bool(sub.waiting or sub.totals or sub.refused), _deadline(timeout))
        if not sub.waiting:
            if sub.refused:
                raise sub.refused
            return None
        item, size = sub.waiting.popleft()
        if not sub.draining:
            self._consume(sub, size)
        return item

    def unsubscribe(self, sub: Subscription, drain: bool = False,
                    timeout: float | None = None) -> Totals:
        """Ends a subscription; with drain, next() still gives what the broker had buffered.

        It ends a consumer too, whose messages go back to the queue; see also finish().
        """
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

    # --- queues ---

    def push(self, queue: str, body: bytes = b"", headers: dict[str, str] | None = None,
             timeout: float | None = None, **options: Any) -> Receipt:
        """Pushes a message and waits until the queue keeps it; raises Refused if it does not.

        The options are those of docs/PROTOCOL.md: id, key, priority, delay_ms, at_ms, ttl_ms.
        Many go faster by publish() to "@queue/NAME", and flush() after them.
        """
        return self.publish_wait("@queue/" + queue, body, headers, timeout=timeout, **options)

    def consume(self, queue: str, prefetch: int = 0, lease_ms: int = 0,
                timeout: float | None = None) -> Consumer:
        """Opens a consumer: next() gives messages of the queue, each to be settled in its lease.

        At most prefetch of them (0: 64) are leased to it at a time; lease_ms 0 is the queue's.
        """
        self._check_queues()
        consumer = Consumer(self._number(), credit=0)
        self._begin(consumer, Frame.CONSUME, timeout, queue=queue, prefetch=prefetch,
                    lease_ms=lease_ms)
        return consumer

    def ack(self, consumer: Consumer, message: Message) -> None:
        """The message is done. Like all that settle it does not wait; flush() does."""
        self._settle(consumer, Verb.ACK, message)

    def nack(self, consumer: Consumer, message: Message, delay_ms: int = 0) -> None:
        """The message is not done: it is to be delivered again, when the delay is over."""
        self._settle(consumer, Verb.NACK, message, delay_ms)

    def reject(self, consumer: Consumer, message: Message, reason: str = "") -> None:
        """The message can never be done: it becomes a dead letter."""
        self._settle(consumer, Verb.REJECT, message, reason=reason)

    def extend(self, consumer: Consumer, message: Message, lease_ms: int = 0) -> None:
        """The message takes longer: its lease ends in so long; 0: in a whole lease from now."""
        self._settle(consumer, Verb.EXTEND, message, lease_ms)

    def _settle(self, consumer: Consumer, verb: Verb, message: Message, ms: int = 0,
                reason: str = "") -> None:
        self._settles += 1
        self._queue(Frame.SETTLE, consumer.number, verb, message.seq, message.seq, ms, reason)
        self._step(0)

    def finish(self, consumer: Consumer) -> None:
        """Has it get no more messages: next() gives None when all that came are settled."""
        self._queue(Frame.UNSUBSCRIBE, {"sub": consumer.number, "drain": True})
        self._step(0)

    def declare(self, queue: str, timeout: float | None = None, **settings: Any) -> dict[str, Any]:
        """Makes a queue, unless it is there with these settings; returns what info() does.

        The settings are those of docs/PROTOCOL.md: level, bind, max_messages and so on.
        """
        return self._ask("declare", queue, timeout, settings=settings)["queues"][0]

    def info(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        """What is to be known of a queue, with the keys of docs/PROTOCOL.md."""
        return self._ask("info", queue, timeout)["queues"][0]

    def queues(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """All queues, each as info() has it."""
        return self._ask("list", "", timeout)["queues"]

    def peek(self, queue: str, state: str = "", start: int = 0,
             timeout: float | None = None) -> Iterator[Message]:
        """Looks at messages, from number start on, which stay where they are.

        state is ready, delayed, leased or dead; without, all but the dead are given.
        """
        while True:
            page = Subscription(self._number(), credit=0)
            self._subscriptions[page.number] = page
            try:
                end = self._ask("peek", queue, timeout, sub=page.number, state=state,
                                limit=PAGE, **{"from": start})
            finally:
                del self._subscriptions[page.number]
            yield from (message for message, _ in page.waiting)
            start = end.get("next", 0)
            if not start:
                return

    def purge(self, queue: str, state: str = "", timeout: float | None = None) -> int:
        """Removes what is ready or delayed, or with state "dead" the dead letters; how many."""
        return self._ask("purge", queue, timeout, state=state)["count"]

    def requeue(self, queue: str, limit: int = 0, timeout: float | None = None) -> int:
        """Takes dead letters back, the oldest first, with limit 0 all; returns how many."""
        return self._ask("requeue", queue, timeout, limit=limit)["count"]

    def pause(self, queue: str, timeout: float | None = None) -> None:
        """Stops deliveries until resume()."""
        self._ask("pause", queue, timeout)

    def resume(self, queue: str, timeout: float | None = None) -> None:
        """Ends pause() and drain()."""
        self._ask("resume", queue, timeout)

    def drain(self, queue: str, timeout: float | None = None) -> None:
        """Has a queue refuse pushes, until resume(), and waits until it is empty."""
        self._ask("drain", queue, timeout)

    def delete(self, queue: str, timeout: float | None = None) -> None:
        """Removes a queue with everything in it."""
        self._ask("delete", queue, timeout)

    def _ask(self, op: str, queue: str, timeout: float | None, **more: Any) -> dict[str, Any]:
        """Sends a QUEUE frame and waits for its QUEUED; of several it puts the lists together."""
        self._check_queues()
        token = self._number()
        given = {key: value for key, value in {"queue": queue, **more}.items() if value}
        self._queue(Frame.QUEUE, {"token": token, "op": op, **given})
        return self._answer(("token", token), _deadline(timeout))

    def _check_queues(self) -> None:
        if "queues" not in self.welcome["features"]:  # it would end the connection
            raise Refused(CODES.index("unknown-frame"), "this broker has no queues")

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
                self._deliver(self._target, Message(seq, time_ns, uid, gid, pid, topic,
                                                    headers or {}, info or {}, body), size)
            case [Frame.TARGET, number]:
                self._target = self._subscriptions.get(number)
            case [Frame.GAP, number, first, last, count, reason]:
                gap = Gap(first, last, count, _name(REASONS, reason))
                self._deliver(self._subscriptions.get(number), gap, 0)
            case [Frame.ACK, upto, subscribers, queues, level]:
                while self._open and self._open[0][0] <= upto:
                    self._decide(Receipt(subscribers, queues, _name(LEVELS, level)))
            case [Frame.SETTLED, upto]:
                self._settled = upto
            case [Frame.ERROR, dict(error)]:
                self._handle_error(error)
            case [Frame.WELCOME, dict(answer)]:
                self._take_answer(("welcome", 0), answer)
            case [Frame.SUBSCRIBED, {"sub": number} as answer]:
                self._take_answer(("sub", number), answer)
            case [Frame.UNSUBSCRIBED, {"sub": number} as end]:
                if sub := self._subscriptions.pop(number, None):
                    sub.totals = Totals(*(end.get(name, 0) for name in Totals._fields))
                self._take_answer(("sub", number), end)
            case [Frame.QUEUED, {"token": token} as part]:
                queues = self._parts.setdefault(token, [])
                queues += part.get("queues", [])
                if not part.get("more"):
                    del self._parts[token]
                    self._take_answer(("token", token), {**part, "queues": queues})
            case [Frame.PONG, token] | [Frame.AWAITED, {"token": token}]:
                self._take_answer(("token", token), frame[1])
            case [Frame.GOODBYE, dict(why)]:
                self._ended = Closed(why.get("code", 0), why.get("text", ""))
            case _:
                self._refuse("unknown-frame", f"a frame that this client does not know: {frame}")

    def _handle_error(self, error: dict[str, Any]) -> None:
        refused = Refused(error.get("code", 0), error.get("text", ""), error.get("lost", []))
        if error.get("settle"):
            self._refusals.append(refused)
        elif error.get("publish"):
            if self._open:
                self._decide(refused)  # verdicts keep the order of the publishes
        elif error.get("token"):
            self._take_answer(("token", error["token"]), refused)
        elif number := error.get("sub"):
            consumer = self._subscriptions.get(number)
            if isinstance(consumer, Consumer):  # without being asked: its queue was deleted
                del self._subscriptions[number]
                consumer.refused = refused
            self._take_answer(("sub", number), refused)

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
    bus.publish_wait(args.topic, _body(args))


def _run_push(bus: Bus, args: argparse.Namespace) -> None:
    bus.push(args.queue, _body(args))


def _run_pull(bus: Bus, args: argparse.Namespace) -> None:
    consumer = bus.consume(args.queue, prefetch=1)
    received = 0
    while args.n is None or received < args.n:
        message = bus.next(consumer)
        sys.stdout.buffer.write(message.body + b"\n")
        sys.stdout.buffer.flush()
        received += 1
        if received == args.n:
            bus.finish(consumer)  # or the ack would bring another one
        bus.ack(consumer, message)  # only now: what was not written comes again
    bus.flush()


def _body(args: argparse.Namespace) -> bytes:
    return sys.stdin.buffer.read() if args.body is None else os.fsencode(args.body)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Publish to a postbus bus or subscribe; push to a queue or pull from it.")
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
    push = commands.add_parser("push", help="push BODY, or all of standard input, to a queue")
    push.add_argument("queue", metavar="QUEUE")
    push.add_argument("body", nargs="?", metavar="BODY")
    push.set_defaults(run=_run_push)
    pull = commands.add_parser("pull", help="print and acknowledge each body of a queue")
    pull.add_argument("queue", metavar="QUEUE")
    pull.add_argument("-n", type=int, help="end after so many messages")
    pull.set_defaults(run=_run_pull)
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
