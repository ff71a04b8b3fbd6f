"""`zbroker bench report`: one page from results files."""

from __future__ import annotations

from pathlib import Path

import click

from zbroker.cli.bench_options import place_for_results
from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json
from zbroker.load.plot import svg
from zbroker.load.report import page
from zbroker.load.results import BadResultsError, load_results


@click.command(epilog=examples("bench report"))
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output", "-o", default="report.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE", help="The page.",
)  # fmt: skip
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Each plot as FILE_PLOT.svg there, too.",
)
@shared_options
@pass_options
def report(options: Options, results: tuple[Path, ...], output: Path, plots: Path | None) -> None:
    """One page with tables and plots from results files.

    The page holds everything, loads nothing, and can be read on light and on dark.
    """
    try:
        found = [load_results(path) for path in results]
    except BadResultsError as error:
        raise click.ClickException(str(error)) from error
    place_for_results(output)
    output.write_text(page(found), encoding="utf-8")
    written = [str(output)]
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        named = ((source.stem, plot) for source, one in zip(results, found, strict=True) for plot in one.plots)
        for stem, plot in named:
            path = plots / f"{stem}_{plot.name}.svg"
            path.write_text(svg(plot), encoding="utf-8")
            written.append(str(path))
    if options.is_json:
        print_json({"written": written})
    else:
        options.note(f"wrote {', '.join(written)}")
