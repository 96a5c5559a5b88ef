"""`statedict runs prune`."""

from __future__ import annotations

import click

from statedict.cli.output import echo_json
from statedict.render.text import printable
from statedict.runs.keep import parse_policy
from statedict.runs.prune import Pruned, prune
from statedict.values import human_bytes


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option(
    "--keep", "words", metavar="POLICY", multiple=True, required=True,
    help="What stays: N, latest:N, best:METRIC[:N][:min|:max], every:N, seconds:N, steps:A,B; may be repeated.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes or --dry-run.")
def command(directory: str, words: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove the checkpoints that no policy keeps, after asking.

    The newest sound one, pinned ones and those that cannot be read stay in any case. Nothing happens while a training
    process writes there, or if the answer is no (status 1), and nothing to the checkpoints of other libraries.
    """
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json does not ask; add --yes or --dry-run")
    answer = True

    def agreed(found: Pruned) -> bool:
        nonlocal answer
        if yes:
            return True
        click.echo(_text(found, "would remove"))
        answer = click.confirm("Remove them?")
        return answer

    found = prune(directory, [parse_policy(word) for word in words], dry_run=dry_run, agreed=agreed)
    if as_json:
        echo_json(found.to_json() | {"dry_run": dry_run})
    elif not answer:
        click.echo("nothing was removed")
    else:
        click.echo(_text(found, "would remove" if dry_run else "removed"))
    return int(not answer)


def _text(found: Pruned, verb: str) -> str:
    gone = ", ".join(map(str, found.removed)) or "nothing"
    lines = [f"{verb} {gone}" + (f" ({human_bytes(found.nbytes)})" if found.removed else "")]
    lines += [f"  {step} stays: {printable(why)}" for step, why in found.kept.items()]
    return "\n".join(lines)
