"""`zbroker log`: a copy's files without its broker: dump, verify, recover.

dump and verify only read, also beside the process that writes. recover changes files, and refuses (exit 75) while a
process has the copy open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from zbroker.cli.examples import examples
from zbroker.cli.failures import CHECK_FAILED, OK
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json, progress, size_text
from zbroker.cli.record_format import as_json, parse_format
from zbroker.errors import CorruptRecordError, DirectoryLockedError, StorageError
from zbroker.record.compression import CODEC_NAMES

if TYPE_CHECKING:
    from zbroker.dump.segments import CopyReport, DumpedBatch

_PATH: Final = click.Path(exists=True, path_type=Path)


@click.group()
def log() -> None:
    """Look at log files, with the broker up or down.

    PATH is a data directory, a copy's directory in it, or one .log file.
    """


@log.command(epilog=examples("log dump"))
@click.argument("path", type=_PATH)
@click.option("-o", "--offset", "start_offset", type=click.IntRange(0), default=0, metavar="N", help="From here on.")
@click.option("-n", "--num", "count", type=click.IntRange(1), metavar="N", help="At most N batches of a copy.")
@click.option("-r", "--records", "with_records", is_flag=True, help="Also the records.")
@click.option(
    "-f",
    "--format",
    "template",
    default="  offset: %o timestamp: %T key: %k value: %v\\n",
    metavar="FORMAT",
    help="How a record is printed, as in consume.",
)
@shared_options
@pass_options
def dump(options: Options, path: Path, start_offset: int, count: int | None, with_records: bool, template: str) -> int:
    """Print batches, a line each, and on request their records. Exits with 4 when one is damaged."""  # fmt: skip
    from zbroker.dump.segments import dump_batches

    formatter = parse_format(template)
    out = sys.stdout.buffer
    damaged = 0
    for part in _parts(path):
        if not options.is_json:
            out.write(f"{part}\n".encode())
        for batch in dump_batches(part, start_offset=start_offset, count_max=count):
            damaged += not batch.is_sound
            if options.is_json:
                out.write(_json_line(batch, with_records))
                continue
            out.write(_line(batch))
            if with_records:
                out.write(formatter(_records(options, batch)))
    out.flush()
    return CHECK_FAILED if damaged else OK


def _parts(path: Path) -> Iterator[Path]:
    from zbroker.dump.segments import find_copies

    found = find_copies(path)
    if path.is_file():
        yield path
        return
    if not found:
        raise StorageError(f"{path}: no log files in it", hint="a data directory, a copy's directory, or a .log file")
    yield from found


def _fields(batch: DumpedBatch) -> dict[str, object]:
    """The names and the order of Kafka's dump tool."""
    header = batch.header
    return {
        "baseOffset": header.base_offset,
        "lastOffset": header.last_offset,
        "count": header.record_count,
        "baseSequence": header.base_sequence,
        "producerId": header.producer_id,
        "producerEpoch": header.producer_epoch,
        "partitionLeaderEpoch": header.leader_epoch,
        "isTransactional": header.is_transactional,
        "isControl": header.is_control,
        "position": batch.position,
        "LogAppendTime" if header.has_append_time else "CreateTime": header.max_timestamp,
        "size": header.size_bytes,
        "magic": header.magic,
        "compresscodec": CODEC_NAMES.get(header.compression, str(header.compression)),
        "crc": header.crc,
        "isvalid": batch.is_sound,
    }


def _line(batch: DumpedBatch) -> bytes:
    texts = (
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in _fields(batch).items()
    )
    return (" ".join(texts) + "\n").encode()


def _json_line(batch: DumpedBatch, with_records: bool) -> bytes:
    import msgspec

    found: dict[str, Any] = {"file": str(batch.path), **_fields(batch)}
    if with_records and batch.is_sound:
        found["records"] = [
            {key: value for key, value in as_json(record).items() if key not in ("topic", "partition")}
            for record in batch.records()
        ]
    return msgspec.json.encode(found) + b"\n"


def _records(options: Options, batch: DumpedBatch) -> list[Any]:
    try:
        return batch.records()
    except CorruptRecordError as error:
        options.note(f"{batch.path}, position {batch.position}: {error.message}")
        return []


@log.command()
@click.argument("path", type=_PATH)
@shared_options
@pass_options
def verify(options: Options, path: Path) -> int:
    """Read everything and say what is wrong. Exits with 4 when something is."""
    reports = _verify(options, path)
    if options.is_json:
        print_json([_as_document(report) for report in reports])
    else:
        for report in reports:
            _print_report(report)
    return OK if all(report.is_sound for report in reports) else CHECK_FAILED


def _verify(options: Options, path: Path) -> list[CopyReport]:
    from zbroker.dump.segments import find_copies, verify_copy

    copies = find_copies(path)
    if not copies:
        raise StorageError(f"{path}: no log files in it", hint="a data directory, a copy's directory, or a .log file")
    reports = []
    with progress(options, "Verifying", len(copies), unit="copies") as advance:
        for directory in copies:
            reports.append(verify_copy(directory))
            advance(1)
    return reports


def _as_document(report: CopyReport) -> dict[str, object]:
    return {
        "directory": str(report.directory),
        "is_sound": report.is_sound,
        "is_locked": report.is_locked,
        "is_closed_cleanly": report.is_closed_cleanly,
        "high_watermark": report.saved.high_watermark if report.saved is not None else None,
        "faults": report.faults,
        "segments": [
            {
                "file": segment.path.name,
                "base_offset": segment.base_offset,
                "next_offset": segment.next_offset,
                "batches": segment.batch_count,
                "size_bytes": segment.size_bytes,
                "damage": segment.damage,
                "index_faults": segment.index_faults,
            }
            for segment in report.segments
        ],
    }


def _print_report(report: CopyReport) -> None:
    first = report.segments[0].base_offset if report.segments else 0
    last = report.segments[-1].next_offset if report.segments else 0
    batches = sum(segment.batch_count for segment in report.segments)
    size_bytes = sum(segment.size_bytes for segment in report.segments)
    state = "in use" if report.is_locked else "closed cleanly" if report.is_closed_cleanly else "not closed cleanly"
    verdict = "sound" if report.is_sound else "DAMAGED"
    click.echo(
        f"{report.directory}: {verdict}; offsets {first} to {last}, {batches:,} batches in {len(report.segments)} "
        f"segments, {size_text(size_bytes)}; {state}"
    )
    for fault in report.faults:
        click.echo(f"  {fault}")
    for segment in report.segments:
        for fault in segment.index_faults:
            click.echo(f"  {segment.path.name}: {fault} (indexes are rebuilt when the copy is opened)")


@log.command(short_help="Cut damaged copies at their first damage.")
@click.argument("path", type=_PATH)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@shared_options
@pass_options
def recover(options: Options, path: Path, yes: bool) -> int:
    """Cut damaged copies at their first damage, so that they can be opened again. What lies behind it is lost.

    Sound copies are left alone. Refuses (exit 75) while a process has a copy open.
    """
    from zbroker.dump.segments import recover_copy

    reports = _verify(options, path)
    for report in reports:
        if report.is_locked:
            raise DirectoryLockedError(f"{report.directory} is open in a process", hint="stop the broker first")
    damaged = [report for report in reports if not report.is_sound]
    for report in damaged:
        if not options.is_json:
            _print_report(report)
    if damaged and not yes and sys.stdin.isatty():
        click.confirm(f"cut {len(damaged)} of {len(reports)} copies?", abort=True, err=True)
    documents = []
    for report in damaged:
        found = recover_copy(report.directory)
        documents.append({"directory": str(report.directory), **found._asdict()})
        if not options.is_json:
            click.echo(
                f"{report.directory}: offsets {found.log_start} to {found.log_end}; "
                f"{found.records_lost:,} acknowledged records are gone"
            )
    if options.is_json:
        print_json(documents)
    elif not damaged:
        click.echo(f"{len(reports)} copies, all sound: nothing to do")
    return OK
