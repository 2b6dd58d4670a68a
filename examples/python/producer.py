#!/usr/bin/env python3
"""Sends increments to Tally with Confluent's client, and prints what it sent.

    increments ──AvroSerializer──► topic `increments` ──► Tally
                      ▲
         schema of subject `increments-value`, from the registry

The subject is the one that the serializer's default strategy makes from the topic's name, and the
schema is the registry's: nothing here knows Tally but the names of the fields. A sum is printed
only once the broker has acknowledged every increment in it, and told its offset: the client may
report a message as delivered that the log does not have, and then there is none.
"""

import argparse
import json
import sys
import uuid
from collections import Counter
from datetime import datetime, timezone

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

KEYS = 10
DELTAS = (3, 1, -2, 5)
"""An increment may take away, too."""

FLUSH_SECONDS = 60


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Sends increments to Tally and prints, as JSON, what each counter was sent.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--bootstrap", default="127.0.0.1:9092", help="the broker")
    parser.add_argument(
        "--registry",
        default="http://127.0.0.1:8081/apis/ccompat/v7",
        help="the schema registry's Confluent-compatible API",
    )
    parser.add_argument("--topic", default="increments", help="the topic of increments")
    parser.add_argument("--namespace", default="python", help="the namespace of the counters")
    parser.add_argument("--count", type=int, default=1000, help="how many increments to send")
    parser.add_argument(
        "--key-prefix",
        default="clicks:",
        help=f"what the names of the {KEYS} counters begin with",
    )
    return parser.parse_args()


class Sent:
    """What the broker has acknowledged, and what it has not."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.failures: list[str] = []

    def on_delivery(self, increment: dict):
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None and message.offset() is None:
                error = "unknown, send it again with its id"
            if error is not None:
                self.failures.append(f"{increment['key']}, id {increment['id']}: {error}")
                return
            self.values[increment["key"]] += increment["delta"]
            self.events[increment["key"]] += 1

        return delivered


def main() -> int:
    args = arguments()
    registry = SchemaRegistryClient({"url": args.registry})
    # Tally owns the schema: take the latest one, register none.
    latest = {"auto.register.schemas": False, "use.latest.version": True}
    serialize = AvroSerializer(registry, conf=latest)
    context = SerializationContext(args.topic, MessageField.VALUE)
    producer = Producer(
        {"bootstrap.servers": args.bootstrap, "enable.idempotence": True, "linger.ms": 5}
    )

    run = uuid.uuid4()
    sent = Sent()
    for index in range(args.count):
        increment = {
            "namespace": args.namespace,
            "key": f"{args.key_prefix}{index % KEYS}",
            "delta": DELTAS[index % len(DELTAS)],
            "at": datetime.now(timezone.utc),
            # The event's own name, from where the event happened: sent twice, it is the same event.
            "id": f"{run}:{index}",
        }
        value = serialize(increment, context)
        # By key, so that an increment that is sent again meets the first one on its partition.
        produce(producer, args.topic, increment["key"], value, sent.on_delivery(increment))
    unanswered = producer.flush(FLUSH_SECONDS)

    if unanswered:
        sent.failures.append(f"no answer to {unanswered} increments within {FLUSH_SECONDS} s")
    if sent.failures:
        print("\n".join(sent.failures[:10]), file=sys.stderr)
        count = len(sent.failures)
        print(f"{count} failures: Tally may count more than is printed", file=sys.stderr)
    subject = topic_subject_name_strategy(context, None)
    report = {
        "topic": args.topic,
        "subject": subject,
        "schema_id": registry.get_latest_version(subject).schema_id,
        "namespace": args.namespace,
        "increments": sent.events.total(),
        "first_id": f"{run}:0" if args.count else None,
        "counters": {
            key: {"value": sent.values[key], "events": sent.events[key]}
            for key in sorted(sent.events)
        },
    }
    print(json.dumps(report, indent=2))
    return 1 if sent.failures else 0


def produce(producer: Producer, topic: str, key: str, value: bytes, on_delivery) -> None:
    """Waits for room when the client's queue is full."""
    while True:
        try:
            producer.produce(topic, key=key, value=value, on_delivery=on_delivery)
        except BufferError:
            producer.poll(1)
            continue
        producer.poll(0)
        return


if __name__ == "__main__":
    sys.exit(main())
