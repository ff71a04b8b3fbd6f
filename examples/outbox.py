"""An outbox: an order is in the database and its message in the log, or neither is.

    zbroker serve &
    python examples/outbox.py order shop.db 100      # a shop takes orders, with or without a broker
    python examples/outbox.py relay shop.db &        # publishes what the shop has committed
    python examples/outbox.py ship depot.db &        # another service: each order is shipped once
    sqlite3 depot.db 'SELECT count(*) FROM shipments'

See zbroker/patterns/outbox.py, outbox_relay.py and inbox.py.
"""

import argparse
import sqlite3

from zbroker import AdminClient, Consumer, NewTopic, Producer
from zbroker.patterns import Inbox, Outbox, OutboxRelay

TOPIC = "orders"


def order(path: str, count: int) -> None:
    """Take orders: each is one transaction with its message."""
    database = sqlite3.connect(path, timeout=30)
    database.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, article TEXT)")
    outbox = Outbox(database)
    for _ in range(count):
        with database:
            number = database.execute("INSERT INTO orders (article) VALUES ('bicycle')").lastrowid
            outbox.send(TOPIC, b"bicycle", b"order-%d" % number)


def make_topic(servers: str | None) -> None:
    """Make the topic unless it is there."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(TOPIC, num_partitions=2)], raise_errors=False)


def relay(servers: str | None, path: str) -> None:
    """Publish what is committed, until it is interrupted."""
    make_topic(servers)
    with Producer(bootstrap_servers=servers) as producer, OutboxRelay(path, producer) as publisher:
        publisher.run()


def ship(servers: str | None, path: str) -> None:
    """Ship each order once, until it is interrupted."""
    make_topic(servers)
    database = sqlite3.connect(path, timeout=30)
    database.execute("CREATE TABLE IF NOT EXISTS shipments (name TEXT PRIMARY KEY)")
    inbox = Inbox(database)
    settings = {"group_id": "depot", "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    with Consumer(TOPIC, bootstrap_servers=servers, **settings) as consumer:
        for record in consumer:
            with database:
                if inbox.accept(record):
                    database.execute("INSERT INTO shipments VALUES (?)", (record.key.decode(),))
            consumer.commit(record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["order", "relay", "ship"])
    parser.add_argument("path", help="the database")
    parser.add_argument("count", nargs="?", type=int, default=1, help="how many orders")
    parser.add_argument("--bootstrap-servers")
    arguments = parser.parse_args()
    if arguments.what == "order":
        order(arguments.path, arguments.count)
    elif arguments.what == "relay":
        relay(arguments.bootstrap_servers, arguments.path)
    else:
        ship(arguments.bootstrap_servers, arguments.path)
