"""Imports between the files of a Rust crate, read from the source text.

An import is a path in a ``use`` that begins with ``crate``, ``super``, ``self`` or the name of a
child module, or a path elsewhere in the code that begins with ``crate`` or ``super``. A ``mod``
declaration is no import. Comments, strings and unit tests are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

Graph = dict[str, set[str]]


def modules(source: Path) -> dict[tuple[str, ...], str]:
    """Return the file of each module, relative to ``source``, by the names of the module's path."""
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
    # Drop unit tests: they may import any file.
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub(?:\(\w+\))? )?mod \w+ \{", text)[0]


def expand(tree: str) -> Iterable[list[str]]:
    """Yield the paths of a ``use`` tree: ``a::{b, c::{d, e}}`` yields a::b, a::c::d and a::c::e."""
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
    """Return the files of the crate that each file imports."""
    known = modules(source)
    graph: Graph = {file: set() for file in known.values()}
    for module, file in known.items():
        if "generated" in Path(file).parts:
            continue
        text = without_comments((source / file).read_text())
        paths = [path for tree in re.findall(r"\buse\s+([^;]+);", text) for path in expand(tree)]
        code = re.sub(r"\buse\s+[^;]+;", "", text)
        paths += [path.split("::") for path in re.findall(r"\b((?:crate|super)(?:::\w+)+)", code)]
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
                # A module that re-exports an item of its child module.
                names = [*module, *path]
            elif path[0] == "self":
                names = [*module, *path[1:]]
            else:
                continue
            target = next(known[tuple(names[:n])] for n in range(len(names), -1, -1) if tuple(names[:n]) in known)
            if target != file:
                graph[file].add(target)
    return graph


def folder_of(file: str) -> str:
    """Return the top folder of a file. A file outside folders, ``a.rs``, is in folder ``a``."""
    return file.split("/")[0].removesuffix(".rs")


def folder_imports(graph: Graph) -> Graph:
    """Return the folders that each folder imports."""
    between: Graph = {}
    for file, targets in graph.items():
        folder = folder_of(file)
        between.setdefault(folder, set()).update(folder_of(target) for target in targets if folder_of(target) != folder)
    return between


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of files or folders that import each other in a circle, each sorted."""
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
    mutual = {node: sorted(other for other in graph if other in reach[node] and node in reach[other]) for node in graph}
    groups = {tuple(group) for group in mutual.values() if group}
    return sorted(list(group) for group in groups)


def foreign_methods(source: Path) -> list[str]:
    """Return ``impl`` blocks outside the folder of their type: imports that no ``use`` shows."""
    files = {file: without_comments((source / file).read_text()) for file in modules(source).values()}
    home: dict[str, set[str]] = {}
    for file, text in files.items():
        for name in re.findall(r"^(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|type) (\w+)", text, re.MULTILINE):
            home.setdefault(name, set()).add(folder_of(file))
    found = []
    for file, text in files.items():
        for name in re.findall(r"^impl(?:<[^{]*?>)? (\w+)(?:<(?:(?! for )[^{])*?>)? \{", text, re.MULTILINE):
            if folder_of(file) not in home.get(name, set()):
                found.append(f"{file}: impl {name}")
    return found
