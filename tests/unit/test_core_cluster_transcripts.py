"""Whole stories of the coordinator, each a script with its full transcript in tests/golden/cluster_story_*.txt.

A line that begins with "> " is something that happens; the lines under it are what the coordinator wanted done, in
order. `ZB_REWRITE_GOLDEN=1 pytest` writes the transcripts anew: read the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster_world import World
from zbroker import ids
from zbroker.core import effects as do
from zbroker.core.entries import AnyEntry, CopiesChanged, Elected, InSync, IsrChanged, PartitionsAdded, TopicCreated
from zbroker.wire.inner_messages import PartitionGrant
from zbroker.wire.messages import (
    AlterConfigs,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    MetadataReply,
    MetadataRequest,
    NewTopicSpec,
    TopicResults,
)

STORIES = sorted((Path(__file__).parent.parent / "golden").glob("cluster_story_*.txt"))


def run_of(incarnation: int) -> str:
    """An incarnation, as stories call it."""
    return f"run {ids.pid_of(incarnation)}" if incarnation else "no run"


def sync_text(change: InSync) -> str:
    text = f"{change.topic_id}/{change.partition} v{change.partition_epoch} isr={','.join(map(str, change.isr))}"
    return text + (f" elr={','.join(map(str, change.elr))}" if change.elr else "")


def entry_text(entry: AnyEntry) -> str:
    if isinstance(entry, Elected):
        found = " ".join(f"{topic_id}/{partition}@{epoch}" for topic_id, partition, epoch in entry.partitions)
        found += "".join(f", {sync_text(change)}" for change in entry.changes)
        found += "".join(f", while {run_of(one.incarnation)} lives" for one in entry.formers)
        return f"Elected {ids.process_name(entry.number)} {run_of(entry.incarnation)}: {found}"
    if isinstance(entry, IsrChanged):
        return f"IsrChanged: {', '.join(map(sync_text, entry.changes))}"
    if isinstance(entry, CopiesChanged):
        copies = " ".join(f"copy {one.copy_id} of {ids.process_name(one.owner)}" for one in entry.copies)
        where = f"{entry.topic_id}/{entry.partition}"
        return f"CopiesChanged {where}: {copies} adding={entry.adding} removing={entry.removing}"
    if isinstance(entry, TopicCreated | PartitionsAdded):
        name = f" {entry.name}" if isinstance(entry, TopicCreated) else ""
        copies = " ".join(
            f"{one.partition}=copy {one.copy_id} on {one.disk} of {ids.process_name(one.owner)}"
            + "".join(f" + copy {more.copy_id} of {ids.process_name(more.owner)}" for more in one.further)
            for one in entry.placements
        )
        return f"{type(entry).__name__} {entry.topic_id}{name}: {copies}"
    fields = " ".join(f"{name}={getattr(entry, name)}" for name in entry.__struct_fields__)
    return f"{type(entry).__name__} {fields}"


def reply_text(effect: do.Reply) -> str:
    if effect.error:
        return f"error {effect.error}: {effect.text}"
    body = effect.body
    if isinstance(body, TopicResults):
        return " ".join(
            f"{one.name}: {one.error or 'done'}" + (f" ({one.message})" * bool(one.message)) for one in body.topics
        )
    if isinstance(body, MetadataReply):
        return " ".join(
            f"{topic.name}: "
            + (f"error {topic.error}" * bool(topic.error))
            + " ".join(f"{one.partition}@{one.leader_epoch} led by {one.leader}" for one in topic.partitions)
            for topic in body.topics
        )
    return type(body).__name__


def grant_text(grant: PartitionGrant) -> str:
    text = f"{grant.topic_id}/{grant.partition}@{grant.leader_epoch}"
    if len(grant.copies) > 1:
        text += f" of {ids.process_name(grant.leader)}" if grant.leader >= 0 else ""
        text += f" v{grant.partition_epoch} isr={','.join(map(str, grant.isr))}"
        text += f" elr={','.join(map(str, grant.elr))}" if grant.elr else ""
        text += f" after copy {grant.predecessor}" if grant.predecessor >= 0 else ""
    return text


def effect_text(effect: do.Effect) -> str:
    match effect:
        case do.AppendEntries():
            kind = "append, durable" if effect.durable else "append"
            return "\n".join(f"{kind}: {entry_text(entry)}" for entry in effect.entries)
        case do.SendGrant():
            found = " ".join(map(grant_text, effect.grants))
            follows = "report from" if effect.grants[0].leader < 0 else "follow grant to"
            word = "grant to" if effect.grants[0].leader == effect.number else follows
            return f"{word} {ids.process_name(effect.number)} {run_of(effect.incarnation)}: {found}"
        case do.SendRevoke():
            found = " ".join(f"{one.topic_id}/{one.partition}" for one in effect.revocations)
            return f"revoke from {ids.process_name(effect.number)} {run_of(effect.incarnation)}: {found}"
        case do.SendReconfigure():
            return f"reconfigure topic {effect.topic_id} at {ids.process_name(effect.number)}"
        case do.Reply():
            return f"reply: {reply_text(effect)}"
        case do.PublishLeader():
            leader = "nobody" if effect.number is None else ids.process_name(effect.number)
            run = f" {run_of(effect.incarnation)}" if effect.incarnation else ""
            return f"board: {effect.topic_id}/{effect.partition}@{effect.leader_epoch} led by {leader}{run}"
        case do.WatchProcess() | do.FenceProcess() | do.RemoveBoard():
            return f"{type(effect).__name__} {ids.process_name(effect.number)} {run_of(effect.incarnation)}"
        case do.PublishWanted():
            return f"wanted: {' '.join(map(ids.process_name, effect.numbers)) or 'none'}"
    return f"{type(effect).__name__} " + " ".join(str(getattr(effect, name)) for name in effect.__struct_fields__)


class Story:
    """Plays a script."""

    def __init__(self) -> None:
        self.world = World(workers=2)
        self.seen = 0

    def play(self, line: str) -> list[str]:
        """Do what a line says; what the coordinator wanted done."""
        words = line.split()
        getattr(self, f"do_{words[0]}")(*words[1:])
        self.world.settle()
        texts = [effect_text(effect) for effect in self.world.effects[self.seen :]]
        self.seen = len(self.world.effects)
        return [part.rstrip() for text in texts for part in text.split("\n")]

    def do_workers(self, count: str) -> None:
        self.world = World(workers=0 if count == "per-partition" else int(count))
        self.seen = 0

    def do_up(self, name: str) -> None:
        self.world.start_worker(ids.process_number(name))

    def do_kill(self, name: str) -> None:
        if name == "coordinator":
            self.world.kill_coordinator()
        else:
            self.world.kill_worker(ids.process_number(name))

    def do_supersede(self, name: str) -> None:
        self.world.supersede_worker(ids.process_number(name))

    def do_coordinator(self) -> None:
        self.world.start_coordinator()

    def do_power(self) -> None:
        self.world.cut_power()

    def do_disk(self, state: str) -> None:
        self.world.log_failures = 1.0 if state == "full" else 0.0

    def do_opening(self, state: str) -> None:
        self.world.open_failures = 1.0 if state == "fails" else 0.0

    def do_tick(self, ms: str) -> None:
        self.world.tick(int(ms))

    def do_create(self, name: str, count: str) -> None:
        self.world.ask(CreateTopics([NewTopicSpec(name, int(count), -1, {})], False))

    def do_extend(self, name: str, total: str) -> None:
        self.world.ask(CreatePartitions(name, int(total)))

    def do_delete(self, *names: str) -> None:
        self.world.ask(DeleteTopics(list(names)))

    def do_alter(self, name: str, setting: str) -> None:
        key, _, value = setting.partition("=")
        self.world.ask(AlterConfigs(name, {key: value}, []))

    def do_metadata(self, name: str, how: str = "only") -> None:
        self.world.ask(MetadataRequest([name], how == "create"))


def test_there_are_stories() -> None:
    assert len(STORIES) >= 7


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_story_has_its_transcript(path: Path) -> None:
    script = path.read_text()
    played = []
    story = Story()
    for line in script.splitlines():
        if line.startswith("#") or not line:
            played.append(line)
        elif line.startswith("> "):
            played += [line, *story.play(line[2:])]
    transcript = "\n".join(played) + "\n"
    if os.environ.get("ZB_REWRITE_GOLDEN"):
        path.write_text(transcript)
    assert transcript == script
