"""Word count by a group: start as many counters as you like, they share the partitions.

    zbroker serve &
    python examples/word_count.py write README.md
    python examples/word_count.py count &          # and again, in other terminals
    python examples/word_count.py show

A word is the key of its record, so all of its records are in one partition, and one member counts them. A partition
that comes to a member is counted from its beginning: the counts of a member that died are not lost, only made again.
"""

import argparse
import re
from collections import Counter, defaultdict
from pathlib import Path

from zbroker import AdminClient, Consumer, NewTopic, Producer

WORDS, COUNTS = "words", "word-counts"


def write(servers: str | None, path: str) -> None:
    """Send each word of a file."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=4) for topic in (WORDS, COUNTS)], raise_errors=False)
    with Producer(bootstrap_servers=servers) as producer:
        for word in re.findall(r"\w+", Path(path).read_text().lower()):
            producer.send(WORDS, b"1", word.encode())


def count(servers: str | None, idle_ms: int) -> None:
    """Count the partitions that the group gives to this member; publish when nothing new has come for a while."""
    counts: dict[int, Counter[bytes]] = defaultdict(Counter)
    consumer = Consumer(bootstrap_servers=servers, group_id="word-count", enable_auto_commit=False)

    def begin(partitions):
        consumer.seek_to_beginning(*partitions)

    def drop(partitions):
        for tp in partitions:
            counts.pop(tp.partition, None)

    consumer.subscribe([WORDS], on_assign=begin, on_revoke=drop)
    with consumer, Producer(bootstrap_servers=servers) as producer:
        while records := consumer.consume(10_000, timeout_ms=idle_ms):
            for record in records:
                counts[record.partition][record.key] += 1
        for partition in counts.values():
            for word, number in partition.items():
                producer.send(COUNTS, b"%d" % number, word)


def show(servers: str | None) -> None:
    """Print the words and how often they come; the last count that was published of a word is the one that holds."""
    latest: dict[bytes, int] = {}
    with Consumer(COUNTS, bootstrap_servers=servers, auto_offset_reset="earliest", consumer_timeout_ms=500) as consumer:
        for record in consumer:
            latest[record.key] = int(record.value)
    for word, number in Counter(latest).most_common():
        print(f"{number:7} {word.decode()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "count", "show"])
    parser.add_argument("file", nargs="?", default="README.md")
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--idle-ms", type=int, default=2_000)
    arguments = parser.parse_args()
    if arguments.what == "write":
        write(arguments.bootstrap_servers, arguments.file)
    elif arguments.what == "count":
        count(arguments.bootstrap_servers, arguments.idle_ms)
    else:
        show(arguments.bootstrap_servers)
