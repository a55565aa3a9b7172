"""What `--help` shows: options in groups, each with an example, and an example of every command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Group:
    """Options that belong together.

    Attributes:
        heading: above them.
        examples: of some of them; a command shows the first whose options it takes.
        options: their names, as the commands' functions take them.
    """

    heading: str
    examples: tuple[str, ...]
    options: tuple[str, ...]


# A command's own options, which are in none of these, come first.
GROUPS = (
    Group(
        "Model",
        ("--model BAAI/bge-small-en-v1.5 --dtype bfloat16 --prompt-name query", "--dtype bfloat16 --revision main"),
        ("revision", "gguf_file", "prompt", "prompt_name", "no_prompt", "truncate_dim", "dtype", "attention",
         "torch_compile", "trust_remote_code", "baseline"),
    ),
    Group(
        "Corpus",
        ("--corpus 'part-*.jsonl.gz' --field title --field body --sample 10000",
         "--field caption --no-dedup --limit 10000", "--field vector --limit 10000",
         "--field vector"),
        ("field", "format", "limit", "sample", "shuffle", "seed", "group_by", "dedup", "delimiter", "encoding",
         "errors", "malformed", "max_bad"),
    ),
    Group(
        "Speed",
        ("--device cuda:1 --token-budget auto --workers 4", "--workers 4 --threads 2",
         "--device cuda:1 --token-budget auto --threads 2", "--device cuda:1 --batch-size 256"),
        ("device", "batch_size", "backend", "token_budget", "packed", "workers", "ray", "distributed", "threads",
         "shard_size", "shard"),
    ),
    Group(
        "Interrupted runs",
        ("--checkpoint run.ckpt --resume",),
        ("checkpoint", "checkpoint_every", "resume"),
    ),
    Group(
        "Output",
        ("--json result.json --save-state all.safetensors --overwrite", "--json result.json --verbose", "--debug"),
        ("json_out", "save_state", "overwrite", "log_json", "verbose", "debug", "_click_default_help"),
    ),
)  # fmt: skip

PROGRESS = (
    "The line that a run shows: sentences done; sentences and tokens a second; padding: the share of what the model "
    "computes that is no token; statistics: the share of the time that the sums take; what is left."
)


class ConeCommand(click.Command):
    """A command whose help has an example and groups of options.

    Args:
        example: how it is called, as a shell takes it.
        arguments: as of `click.Command`.
    """

    def __init__(self, *arguments: Any, example: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the example and the groups."""
        with formatter.section("Example"):
            formatter.write_text(self.example)
        for heading, example, records in self._groups(ctx):
            with formatter.section(heading):
                if example:
                    formatter.write_text(f"as in {example}")
                formatter.write_dl(records)
        if any(parameter.name == "log_json" for parameter in self.params):
            formatter.write_paragraph()
            formatter.write_text(PROGRESS)

    def _groups(self, ctx: click.Context) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
        """Heading, example and options of each group that this command has options of."""
        found = [(one.name or "", one.get_help_record(ctx)) for one in self.get_params(ctx)]
        records = [(name, record) for name, record in found if record is not None]
        grouped = {name for group in GROUPS for name in group.options}
        own = [record for name, record in records if name not in grouped]
        if own:
            yield "Options", "", own
        for group in GROUPS:
            chosen = [record for name, record in records if name in group.options]
            if chosen:
                yield group.heading, next(filter(self._takes, group.examples), ""), chosen

    def _takes(self, example: str) -> bool:
        """Whether this command has every option that an example has."""
        flags = {flag for one in self.params for flag in (*one.opts, *one.secondary_opts)}
        return all(part in flags for part in example.split() if part.startswith("--"))
