"""`zbroker completion`: the script that a shell needs to complete commands, options and topic names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@shared_options
@pass_options
def completion(options: Options, shell: str) -> None:
    """Print the shell's completion script.

    \b
    zbroker completion bash > ~/.local/share/bash-completion/completions/zbroker
    zbroker completion zsh > ~/.zfunc/_zbroker
    zbroker completion fish > ~/.config/fish/completions/zbroker.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    script = found(root, {}, "zbroker", "_ZBROKER_COMPLETE").source()
    if options.is_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
