"""`edge cache show` and `cache clear`: the evaluated prompts that are kept to answer the next one sooner."""

from __future__ import annotations

import click

from ..config import Settings
from .options import console, options, print_json


@click.command()
@options()
def cache_show_command(settings: Settings, as_json: bool) -> int:
    """Show how many beginnings of prompts are kept, and the room that they take.

    They hold what prompts held: questions, passages, answers. The setting `prefix_cache` (EDGE_PREFIX_CACHE) is the
    most that they may take in MB; 0 keeps none.
    """
    from ..engines.prefix_folder import FOLDER, PrefixFolder

    folder = PrefixFolder(settings.home / FOLDER, settings.prefix_cache << 20)
    number, size = folder.usage()
    if as_json:
        print_json({"folder": folder.folder, "prefixes": number, "bytes": size, "limit": folder.limit})
    else:
        most = settings.prefix_cache
        console().print(f"{number} prefixes, {size / (1 << 20):,.1f} of at most {most} MB, in {folder.folder}")
    return 0


@click.command()
@options()
def cache_clear_command(settings: Settings, as_json: bool) -> int:
    """Delete all of them. Programs that are running keep what they have in memory."""
    from ..engines.prefix_folder import FOLDER, PrefixFolder

    freed = PrefixFolder(settings.home / FOLDER, 0).clear()
    if as_json:
        print_json({"freed": freed})
    else:
        console().print(f"{freed / (1 << 20):,.1f} MB freed")
    return 0
