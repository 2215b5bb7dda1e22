"""The docs: what is made from the code is as it makes it, and links lead somewhere."""

import re
from pathlib import Path

import pytest

from lakescore.text import REMEDIES, ErrorCode
from scripts.config_reference import page

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/RESULTS.md"]


def test_the_page_about_the_configuration_is_what_the_models_say() -> None:
    assert (ROOT / "docs/configuration.md").read_text("utf-8") == page()


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    def anchors_of(page: Path) -> set[str]:
        titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

    for link in re.findall(r"\]\(([^)]+)\)", file.read_text("utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        linked = file.parent / path if path else file
        assert linked.exists(), link
        assert not anchor or anchor in anchors_of(linked), link


def test_every_error_code_has_its_remedy_and_its_line() -> None:
    assert REMEDIES.keys() == set(ErrorCode)
    operations = (ROOT / "docs/operations.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", operations, re.MULTILINE)) == set(ErrorCode)


def test_every_command_of_make_that_docs_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pages = {file.name: file.read_text("utf-8") for file in PAGES}
    named = {
        name: set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", text, re.MULTILINE))
        for name, text in pages.items()
    }
    assert {
        name: commands - targets for name, commands in named.items() if commands - targets
    } == {}
    assert named["README.md"] >= {"demo", "test", "bench-tables"}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_commands_may_be_typed_into_any_shell(file: Path) -> None:
    # zsh, as macOS has it, takes a comment for a command.
    for block in re.findall(r"```sh\n(.*?)```", file.read_text("utf-8"), re.DOTALL):
        assert not re.search(r"(^|\s)#", block, re.MULTILINE), block
