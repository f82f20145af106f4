"""Check a built site: no broken local links or anchors, every image has alternative text: check_site.py FOLDER."""

from __future__ import annotations

import html.parser
import pathlib
import sys
import urllib.parse

SKIPPED = ("http:", "https:", "mailto:", "data:", "javascript:")


class Page(html.parser.HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, text: str) -> None:
        """Read a page."""
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ids, links and pictures."""
        given = dict(attrs)
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        target = given.get("href") or given.get("src")
        if target and not target.startswith(SKIPPED) and tag in ("a", "img", "link", "script"):
            self.targets.add(target)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.without_text.append(str(given.get("src")))


def faults(folder: pathlib.Path) -> list[str]:
    """Return a message for each broken link and each image without alternative text."""
    folder = folder.resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html") if "_static" not in path.parts
    }
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        found += [f"{where}: the picture {source} has no alt text." for source in page.without_text]
        for target in page.targets:
            parts = urllib.parse.urlsplit(target)
            file = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            if not file.exists():
                found.append(f"{where}: {target} does not exist.")
            elif parts.fragment and file in pages and urllib.parse.unquote(parts.fragment) not in pages[file].anchors:
                found.append(f"{where}: {target} has no such anchor.")
    return sorted(found)


if __name__ == "__main__":
    problems = faults(pathlib.Path(sys.argv[1]))
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    sys.exit(bool(problems))
