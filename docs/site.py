"""What `mkdocs.yml` has done beside mkdocs: pages that are files of the repository, and links that leave the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


# Wide tables have their room instead of a table of contents; and a search finds the API first.
WIDE = ("support.md", "speed.md", "students.md", "gpu/README.md")
META = {**{page: {"hide": ["toc"]} for page in WIDE}, "api.md": {"search": {"boost": 3}}}


def on_files(files, config):
    for source, page in PAGES.items():
        text = moved((ROOT / source).read_text(encoding="utf-8"), "")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """A page of docs/ links to files of the repository, too."""
    page.meta |= META.get(page.file.src_uri, {})
    if page.file.src_uri in PAGES.values():
        return markdown
    return moved(markdown, f"docs/{posixpath.dirname(page.file.src_uri)}")


def moved(text: str, folder: str) -> str:
    """Links of a page in a folder of the repository, as ones of the site; of what is not in it, their words."""

    def link(match: re.Match) -> str:
        picture, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, path))
        page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None or Path(page).suffix not in (".md", ".png", ".svg"):
            page = f"{page}/README.md" if page and (ROOT / path / "README.md").exists() else None
        if page is None:
            return words
        here = folder.removeprefix("docs").strip("/")
        return f"{picture}[{words}]({posixpath.relpath(page, here or '.')}{hash_}{anchor})"

    return LINK.sub(link, text)
