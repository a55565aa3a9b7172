"""The options that say which texts are read, and how: keywords of `CorpusOptions`."""

from __future__ import annotations

import click

from cone_kernels.names import TEXT_FORMATS

field_option = click.option("--field", multiple=True, help="A field of the records to read; may be repeated.")

dedup_option = click.option(
    "--dedup/--no-dedup", default=True, show_default=True, help="Leave out sentences that came before."
)

limit_option = click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N distinct sentences."
)

format_option = click.option(
    "--format", type=click.Choice(TEXT_FORMATS), help="Of standard input, -.  [default: as it begins]"
)

# Which texts of a corpus are read, in which order, and which of them belong together.
order_options = (
    limit_option,
    field_option,
    click.option(
        "--sample", type=click.IntRange(min=1), metavar="N", help="N of the distinct sentences, drawn uniformly."
    ),
    click.option(
        "--shuffle", is_flag=True, help="In an order drawn by chance: of alike neighbours errors are too small."
    ),
    click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Of both.  [default: 0]"),
    click.option("--group-by", metavar="FIELD", help="A field whose sentences belong together: a document's id."),
)
file_options = (
    dedup_option,
    format_option,
    click.option(
        "--delimiter", metavar="C", help="Between the cells of a .csv or .tsv file.  [default: a comma, a tab]"
    ),
    click.option("--encoding", default="utf-8", show_default=True, metavar="NAME", help="Of files of text."),
)
policy_options = (
    click.option(
        "--errors",
        type=click.Choice(["replace", "drop", "raise"]),
        default="replace",
        show_default=True,
        help="What to do with text that is not of the encoding.",
    ),
    click.option(
        "--malformed",
        type=click.Choice(["drop", "raise"]),
        default="drop",
        show_default=True,
        help="What to do with records that cannot be read or lack a field.",
    ),
)
