"""The pages lead to what there is: links and anchors, the navigation, messages, words, pictures."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from cone_kernels.cli.group import COMMANDS
from tests.support.places import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`([^`]+)`")
MESSAGE_TABLE = "| what went wrong | the message says | what to do |"


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, on a site and in a repository alike."""
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in HEADING.findall(prose(page)))
    return {re.sub(r"\s+", "-", heading) for heading in words}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere; those to the web are not followed."""
    found = []
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        if not to.is_file() or (anchor and anchor not in anchors(to)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](page.md#one) [b](#two) [c](none.md) [d](https://x.org) ![e](none.svg)\n", "utf-8")
    assert broken(page) == ["#two", "none.md", "none.svg"]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [page.name for page in DOCS]


def test_every_picture_is_on_a_page_small_and_without_anything_from_elsewhere() -> None:
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    shown = {(page.parent / target).resolve() for page in PAGES for target in LINK.findall(prose(page))}
    assert [path.name for path in pictures if path.resolve() not in shown] == []
    for path in pictures:
        assert path.stat().st_size < (60_000 if path.suffix == ".svg" else 250_000), path.name
    for path in (path for path in pictures if path.suffix == ".svg"):
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
        assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(re.findall(r"--(\w+):", text))


@cache
def source() -> str:
    """The package's source, with the strings that are written over several lines in one."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "cone_kernels").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def messages(page: str) -> list[str]:
    """The messages that the tables of faults quote."""
    rows = [row.split(" | ") for table in page.split(MESSAGE_TABLE)[1:] for row in table.split("\n\n")[0].splitlines()]
    return [message for row in rows if len(row) == 3 for message in NAME.findall(row[1])]


def unknown(message: str) -> list[str]:
    """The fixed parts of a message that no string of the package has."""
    return [part.strip() for part in message.split("…") if part.strip() and part.strip() not in source()]


def test_every_message_that_is_quoted_is_one_of_the_package() -> None:
    quoted = messages((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert len(quoted) > 60
    assert [message for message in quoted if unknown(message)] == []
    assert unknown("corpus: there is no file …, nor was there one") == [", nor was there one"]


WORDS = re.findall(r"^\| (.+?) \| (.+) \|$", prose(ROOT / "docs" / "glossary.md"), re.MULTILINE)[1:]


def test_words_are_in_the_order_of_the_alphabet_once() -> None:
    words = [re.sub(r"[^a-z0-9 ]", "", word.lower().replace("-", " ")) for word, _ in WORDS]
    assert words == sorted(words)
    assert len({word for word, _ in WORDS}) == len(WORDS) > 50


def test_what_computes_a_word_is_there() -> None:
    names = [name for _, meaning in WORDS for name in NAME.findall(meaning)]
    for module, function in (name.split(".") for name in names if re.fullmatch(r"(metrics|axes)\.\w+", name)):
        assert hasattr(importlib.import_module(f"cone_kernels.{module}"), function), f"{module}.{function}"
    commands = [name.split()[1] for name in names if name.startswith("cone ")]
    assert len(commands) > 10
    assert set(commands) <= set(COMMANDS)
