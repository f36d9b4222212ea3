"""The imports between a Rust crate's own files, read from the source text.

An import is a path that begins with ``crate::`` or ``super::``, in a ``use`` or anywhere in the code. ``mod`` declarations are
no imports. Comments, strings and files of unit tests (``tests.rs``) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

Graph = dict[str, set[str]]


def modules(source: Path) -> dict[tuple[str, ...], str]:
    """Each module's path, as a tuple of names, and its file, relative to ``source``."""
    found: dict[tuple[str, ...], str] = {}
    for path in sorted(source.rglob("*.rs")):
        relative = path.relative_to(source)
        if path.name == "tests.rs" or "tests" in relative.parts[:-1]:
            continue
        names = relative.with_suffix("").parts
        if names[-1] in ("mod", "lib", "main"):
            names = names[:-1]
        if str(relative) != "main.rs" or not (source / "lib.rs").exists():
            found[names] = str(relative)
    return found


def without_comments(text: str) -> str:
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    text = re.sub(r"//[^\n]*", "", text)
    # A unit test may use anything.
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub(?:\(\w+\))? )?mod \w+ \{", text)[0]


def expand(tree: str) -> Iterable[list[str]]:
    """The paths of a ``use`` tree: ``a::{b, c::{d, e}}`` is a::b, a::c::d and a::c::e."""
    tree = tree.strip()
    match = re.match(r"((?:\w+::)*)\{(.*)\}$", tree, re.DOTALL)
    if not match:
        yield [part for part in re.split(r"::", re.sub(r"\s+as\s+\w+$", "", tree)) if part]
        return
    before = [part for part in match[1].split("::") if part]
    depth, start, inner = 0, 0, match[2]
    for at, char in enumerate([*inner, ","]):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if piece := inner[start:at].strip():
                for rest in expand(piece):
                    yield [*before, *rest]
            start = at + 1


def imports(source: Path) -> Graph:
    """Which file of the crate imports which others."""
    known = modules(source)
    graph: Graph = {file: set() for file in known.values()}
    for module, file in known.items():
        if "generated" in Path(file).parts:
            continue
        text = without_comments((source / file).read_text())
        paths = [path for tree in re.findall(r"\buse\s+([^;]+);", text) for path in expand(tree)]
        paths += [path.split("::") for path in re.findall(r"\b((?:crate|super)(?:::\w+)+)", re.sub(r"\buse\s+[^;]+;", "", text))]
        for path in paths:
            if path[0] == "crate":
                names = path[1:]
            elif path[0] == "super":
                above = module[:-1]
                rest = path[1:]
                while rest and rest[0] == "super":
                    above, rest = above[:-1], rest[1:]
                names = [*above, *rest]
            elif path[0] != "self" and (*module, path[0]) in known:
                # A module that shows something of its own child.
                names = [*module, *path]
            elif path[0] == "self":
                names = [*module, *path[1:]]
            else:
                continue
            target = next(known[tuple(names[:n])] for n in range(len(names), -1, -1) if tuple(names[:n]) in known)
            if target != file:
                graph[file].add(target)
    return graph


def room(file: str) -> str:
    """The folder of a file, or the file's own name if it is in none. `a.rs` belongs to the folder `a`."""
    return file.split("/")[0].removesuffix(".rs")


def rooms(graph: Graph) -> Graph:
    """The imports between folders."""
    between: Graph = {}
    for file, targets in graph.items():
        between.setdefault(room(file), set()).update(room(target) for target in targets if room(target) != room(file))
    return between


def circles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that reach each other, each sorted."""
    reach: Graph = {}
    for start in graph:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for target in graph.get(todo.pop(), set()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        reach[start] = seen
    groups = {tuple(sorted(other for other in graph if other in reach[node] and node in reach[other])) for node in graph if node in reach[node]}
    return sorted(list(group) for group in groups)


def foreign_methods(source: Path) -> list[str]:
    """Methods of a type that stand in another folder than the type: an import that no `use` shows."""
    files = {file: without_comments((source / file).read_text()) for file in modules(source).values()}
    home: dict[str, set[str]] = {}
    for file, text in files.items():
        for name in re.findall(r"^(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|type) (\w+)", text, re.MULTILINE):
            home.setdefault(name, set()).add(room(file))
    found = []
    for file, text in files.items():
        for name in re.findall(r"^impl(?:<[^{]*?>)? (\w+)(?:<(?:(?! for )[^{])*?>)? \{", text, re.MULTILINE):
            if room(file) not in home.get(name, set()):
                found.append(f"{file}: impl {name}")
    return found
