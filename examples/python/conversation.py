#!/usr/bin/env python3
"""Holds a scripted conversation with a broker: conversation.py ADDRESS SCRIPT.

It prints the script with what really came of each command; the commands are explained at
the top of ../testdata/conversation.txt. The Go client is led through the same script.
"""

from __future__ import annotations

import os
import sys
import time
import zlib

from typing import Any

from postbus import Bus, Consumer, Error, Gap, Message, Subscription

TIMEOUT = 20  # seconds for one command; none should need it


class Conversation:
    """Carries out commands: do_X is X, and gives the text behind the arrow."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.bus: Bus | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.latest: dict[str, Message] = {}  # by name of the subscription
        self.first_seq: int | None = None
        self.taken: dict[tuple[str, str], Message] = {}  # by name of the consumer and number

    def run(self, line: str) -> str:
        """Carries out one line of the script and gives it back with the real result."""
        command = line.partition(" -> ")[0]
        verb, *words = command.split()
        try:
            result = getattr(self, "do_" + verb)(*words)
        except Error as err:
            result = err.name
        except TimeoutError:
            result = "timeout"
        return f"{command} -> {result}"

    def do_connect(self) -> str:
        self.bus = Bus.connect(self.address, timeout=TIMEOUT)
        return "ok"

    def do_subscribe(self, name: str, *words: str) -> str:
        filters = [word for word in words if "=" not in word and word != "no-local"]
        options = dict(word.split("=") for word in words if "=" in word)
        numbers = {key: int(options[key]) for key in ("messages", "credit") if key in options}
        self.subscriptions[name] = self.bus.subscribe(
            *filters, policy=options.get("policy", "drop-old"), no_local="no-local" in words,
            timeout=TIMEOUT, **numbers)
        return "ok"

    def do_publish(self, topic: str, body: str, *options: str) -> str:
        receipt = self.bus.publish_wait(topic, parse(body), *parse_options(options), TIMEOUT)
        return f"taken by {receipt.subscribers}"

    def do_send(self, topic: str, body: str, *options: str) -> str:
        self.bus.publish(topic, parse(body), *parse_options(options), TIMEOUT)
        return "ok"

    def do_flush(self) -> str:
        self.bus.flush(TIMEOUT)
        return "ok"

    def do_next(self, name: str) -> str:
        item = self.bus.next(self.subscriptions[name], TIMEOUT)
        if item is None:
            return "end"
        if isinstance(item, Gap):
            first, last = (seq - self.first_seq + 1 for seq in (item.first, item.last))
            return f"gap {item.count} of {first}..{last} {item.reason}"
        self.latest[name] = item
        if self.first_seq is None:
            self.first_seq = item.seq
        headers = [f"{key}={value}" for key, value in sorted(item.headers.items())]
        return " ".join([item.topic, show(item.body), *headers])

    def do_origin(self, name: str) -> str:
        message = self.latest[name]
        mine = (message.uid, message.gid, message.pid) == (os.getuid(), os.getgid(), os.getpid())
        now = abs(time.time_ns() - message.time_ns) < 60e9
        return f"{'mine' if mine else 'foreign'}, {'just now' if now else 'long ago'}"

    def do_waiting(self, name: str) -> str:
        self.bus.ping(TIMEOUT)  # what the broker sent before its answer has come too
        return str(len(self.subscriptions[name].waiting))

    def do_count(self, topic: str, number: str) -> str:
        for i in range(int(number)):
            self.bus.publish(topic, str(i + 1).encode(), timeout=TIMEOUT)
        return "ok"

    def do_counted(self, name: str, number: str) -> str:
        for i in range(int(number)):
            item = self.bus.next(self.subscriptions[name], TIMEOUT)
            if not isinstance(item, Message) or item.body != str(i + 1).encode():
                return f"{item} instead of {i + 1}"
        return "in order"

    def do_unsubscribe(self, name: str) -> str:
        self.bus.unsubscribe(self.subscriptions[name], timeout=TIMEOUT)
        return "ok"

    def do_drain(self, name: str) -> str:
        self.bus.unsubscribe(self.subscriptions[name], drain=True, timeout=TIMEOUT)
        return "ok"

    def do_push(self, queue: str, body: str, *options: str) -> str:
        return self.bus.push(queue, parse(body), timeout=TIMEOUT, **parse_fields(options)).level

    def do_put(self, queue: str, body: str, *options: str) -> str:
        self.bus.publish(f"@queue/{queue}", parse(body), timeout=TIMEOUT, **parse_fields(options))
        return "ok"

    def do_consume(self, name: str, queue: str, *options: str) -> str:
        self.subscriptions[name] = self.bus.consume(queue, timeout=TIMEOUT, **parse_fields(options))
        return "ok"

    def do_take(self, name: str) -> str:
        message = self.bus.next(self.subscriptions[name], TIMEOUT)
        if message is None:
            return "end"
        self.taken[name, str(message.seq)] = message
        return describe(message)

    def do_ack(self, name: str, number: str) -> str:
        self.bus.ack(self.consumer(name), self.taken[name, number])
        return "ok"

    def do_confirm(self, name: str, number: str) -> str:
        self.bus.ack(self.consumer(name), self.taken[name, number])
        return self.do_flush()

    def do_nack(self, name: str, number: str, delay_ms: str = "0") -> str:
        self.bus.nack(self.consumer(name), self.taken[name, number], int(delay_ms))
        return "ok"

    def do_reject(self, name: str, number: str, reason: str = "") -> str:
        self.bus.reject(self.consumer(name), self.taken[name, number], reason)
        return "ok"

    def do_extend(self, name: str, number: str, lease_ms: str) -> str:
        self.bus.extend(self.consumer(name), self.taken[name, number], int(lease_ms))
        return "ok"

    def do_settled(self, _: str) -> str:
        return self.do_flush()

    def do_finish(self, name: str) -> str:
        self.bus.finish(self.consumer(name))
        return "ok"

    def do_queue(self, op: str, *words: str) -> str:
        return getattr(self, "queue_" + op)(*words)

    def queue_declare(self, queue: str, *settings: str) -> str:
        fields = parse_fields(settings)
        if "bind" in fields:
            fields["bind"] = fields["bind"].split(",")
        self.bus.declare(queue, TIMEOUT, **fields)
        return "ok"

    def queue_list(self) -> str:
        return " ".join(queue["name"] for queue in self.bus.queues(TIMEOUT))

    def queue_info(self, queue: str) -> str:
        info = self.bus.info(queue, TIMEOUT)
        counts = [f"{info[key]} {key}" for key in ("ready", "delayed", "leased", "dead")]
        return ", ".join(counts + [key for key in ("paused", "draining") if info[key]])

    def queue_peek(self, queue: str, state: str = "") -> str:
        messages = self.bus.peek(queue, state, timeout=TIMEOUT)
        return "; ".join(map(describe, messages)) or "nothing"

    def queue_purge(self, queue: str, state: str = "") -> str:
        return str(self.bus.purge(queue, state, TIMEOUT))

    def queue_requeue(self, queue: str, limit: str = "0") -> str:
        return str(self.bus.requeue(queue, int(limit), TIMEOUT))

    def queue_pause(self, queue: str) -> str:
        self.bus.pause(queue, TIMEOUT)
        return "ok"

    def queue_resume(self, queue: str) -> str:
        self.bus.resume(queue, TIMEOUT)
        return "ok"

    def queue_drain(self, queue: str) -> str:
        self.bus.drain(queue, TIMEOUT)
        return "ok"

    def queue_delete(self, queue: str) -> str:
        self.bus.delete(queue, TIMEOUT)
        return "ok"

    def consumer(self, name: str) -> Consumer:
        consumer = self.subscriptions[name]
        assert isinstance(consumer, Consumer), f"{name} is not a consumer"
        return consumer

    def do_ping(self) -> str:
        self.bus.ping(TIMEOUT)
        return "ok"

    def do_await(self, topic: str, number: str) -> str:
        return str(self.bus.await_subscribers(topic, int(number), TIMEOUT))

    def do_close(self) -> str:
        self.bus.close()
        return "ok"


def parse(text: str) -> bytes:
    """The body that a word of the script stands for."""
    if text == '""':
        return b""
    if text.startswith("0x"):
        return bytes.fromhex(text[2:])
    word, star, times = text.partition("*")
    return word.encode() * (int(times) if star else 1)


def parse_options(words: tuple[str, ...]) -> tuple[dict[str, str], bool]:
    """The headers that options of a publish stand for, and whether a subscriber is required."""
    pairs = [word.split("=") for word in words if "=" in word]
    return {key: parse(value).decode() for key, value in pairs}, "require" in words


def parse_fields(words: tuple[str, ...]) -> dict[str, Any]:
    """What words such as max_tries=3 stand for, whole numbers as such."""
    fields = dict(word.split("=") for word in words)
    return {key: int(value) if value.lstrip("-").isdigit() else value
            for key, value in fields.items()}


def describe(message: Message) -> str:
    """A queue's message, as a word of the script and what is to be said beside it."""
    words = [str(message.seq), show(message.body)]
    if message.tries != 1 and "state" not in message.info:
        words.append(f"tries={message.tries}")
    words += [f"{key}={message.info[key]}" for key in ("key", "id", "priority", "origin", "reason", "state")
              if key in message.info]
    if message.redelivered:
        words.append("redelivered")
    return " ".join(words)


def show(body: bytes) -> str:
    """The word of the script that stands for a body."""
    if not body:
        return '""'
    if len(body) > 64:
        return f"{len(body)} bytes {zlib.crc32(body):08x}"
    if all(0x21 <= byte <= 0x7E for byte in body):
        return body.decode()
    return "0x" + body.hex()


def main() -> None:
    address, script = sys.argv[1:]
    conversation = Conversation(address)
    with open(script, encoding="utf-8") as lines:
        for line in lines:
            line = line.rstrip("\n")
            print(line if not line or line.startswith("#") else conversation.run(line), flush=True)


if __name__ == "__main__":
    main()
