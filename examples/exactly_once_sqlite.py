"""Exactly once into SQLite: totals that are right, whatever is killed when.

    zbroker serve &
    python examples/exactly_once_sqlite.py pay 1000
    python examples/exactly_once_sqlite.py book totals.db      # kill it, start it again
    sqlite3 totals.db 'SELECT * FROM accounts'

The offsets are in the database, written in the same transaction as the totals: see zbroker/patterns/sqlite_sink.py.
"""

import argparse
import json
import random
import sqlite3

from zbroker import AdminClient, Consumer, NewTopic, Producer
from zbroker.patterns import SqliteSink

TOPIC = "payments"


def pay(servers: str | None, count: int) -> None:
    """Send payments; print what they come to."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(TOPIC, num_partitions=4)], raise_errors=False)
    total = 0
    with Producer(bootstrap_servers=servers) as producer:
        for _ in range(count):
            account, cents = random.choice(["ada", "bob", "cleo"]), random.randint(1, 10_000)
            producer.send(TOPIC, json.dumps({"account": account, "cents": cents}).encode(), account.encode())
            total += cents
    print(total)


def book(servers: str | None, path: str) -> None:
    """Add each payment to its account, until it is interrupted."""
    database = sqlite3.connect(path, timeout=30)
    database.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, cents INTEGER, payments INTEGER)")

    def add(record):
        payment = json.loads(record.value)
        database.execute(
            "INSERT INTO accounts VALUES (?, ?, 1) ON CONFLICT (name)"
            " DO UPDATE SET cents = cents + excluded.cents, payments = payments + 1",
            (payment["account"], payment["cents"]),
        )

    with Consumer(TOPIC, bootstrap_servers=servers, group_id="book", auto_offset_reset="earliest") as consumer:
        SqliteSink(consumer, database).run(add)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pay", "book"])
    parser.add_argument("argument", help="how many payments, or the database's path")
    parser.add_argument("--bootstrap-servers")
    arguments = parser.parse_args()
    if arguments.what == "pay":
        pay(arguments.bootstrap_servers, int(arguments.argument))
    else:
        book(arguments.bootstrap_servers, arguments.argument)
