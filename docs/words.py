"""List sentences in comments and pages that may be hard to read: `make words`, or `python docs/words.py FILE ...`.

The list helps a reader to find candidates. It is no gate: a sentence that is not listed can be hard,
and one that is listed can be fine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_WORDS = 30
# A comment that begins so has no subject.
OPENERS = re.compile(r"(?:What|Whose|Whom|Whether|How|Where|Who|Whoever|Why)\b")
# Words that hide the subject, and private words where the glossary has a term.
HARD = {
    r"\b(?:whoever|whatever|whichever|somebody|nobody|everybody|anybody)\b": "name the subject",
    r"\bwhat is (?:there|here|left)\b": "name the thing",
    r"\bgo(?:es)? by\b": "uses",
    r"\blets? go\b": "releases, deletes",
    r"\bcomes? together\b": "meets, becomes equal",
    r"\bgives? way\b": "is replaced by",
    r"\bstands? (?:for|in)\b": "fallback, represents",
    r"\btaken for\b": "counts as",
    r"\blooks? (?:at|for|whether)\b": "polls, reads, checks",
    r"\btroubles?\b": "error, problem",
    r"\breap(?:ed|ing|s)?\b": "collects tombstones",
    r"\blanes?\b": "batch sender",
    r"\bfounding\b": "cluster init",
    r"\bleftovers?\b": "range handoff",
    r"\btransition\b": "layout change",
}


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Each block of comment or prose with the number of its first line."""
    text = path.read_text(errors="replace").splitlines()
    pattern = {".rs": r"\s*//[/!]? ?(.*)", ".py": r"\s*# ?(.*)"}.get(path.suffix)
    block: list[str] = []
    first, fenced = 0, False
    for number, line in enumerate([*text, ""], 1):
        fenced ^= path.suffix == ".md" and line.startswith("```")
        match = re.fullmatch(pattern, line) if pattern else re.fullmatch(r"((?!\||#|```|<).+)", line)
        words = match[1].strip() if match and not fenced else ""
        if words and not words.startswith("#"):
            first = first if block else number
            block.append(words)
        elif block:
            yield first, " ".join(block)
            block = []


def candidates(path: Path) -> Iterator[str]:
    """Lines that name a place in the file, and the reason to read it."""
    for line, block in comments(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        if path.suffix == ".rs" and OPENERS.match(block):
            yield f"{where}: begins with {block.split()[0]!r}: {block[:80]}"
        for pattern, instead in HARD.items():
            if match := re.search(pattern, block, re.IGNORECASE):
                yield f"{where}: {match[0]!r} ({instead}): {block[max(0, match.start() - 30) : match.end() + 50]}"
        for sentence in re.split(r"(?<=[.!?:;])\s+", block):
            if len(sentence.split()) > MAX_WORDS:
                yield f"{where}: {len(sentence.split())} words: {sentence[:80]}"


def main() -> None:
    """Print the candidates of the files that are named, or of all that git tracks."""
    if sys.argv[1:]:
        paths = [Path(name).resolve() for name in sys.argv[1:]]
    else:
        command = ["git", "ls-files", "*.rs", "*.py", "*.md"]
        tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in tracked.stdout.split() if "generated" not in name]
    found = [line for path in paths if path.exists() for line in candidates(path)]
    print("\n".join(found))
    print(f"{len(found)} candidates in {len(paths)} files")


if __name__ == "__main__":
    main()
