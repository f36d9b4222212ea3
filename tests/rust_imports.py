"""Imports between the files of a Rust crate, read from the source text.

An import is a path, in a ``use`` or elsewhere in the code, that begins with ``crate``, ``super``,
``self`` or the name of a child module. A ``mod`` declaration is no import. Comments, strings and
unit tests are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

Graph = dict[str, set[str]]

# Text that is no code: comments, strings, chars. The leftmost match counts, as in a lexer.
NO_CODE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | \bb?r(?P<hashes>\#*)".*?"(?P=hashes) | b?"(?:[^"\\]|\\.)*" | b?'(?:[^'\\\n]|\\[^\n]+?)'""",
    re.DOTALL | re.VERBOSE,
)


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


def code_of(text: str) -> str:
    """Return the text without comments, strings and unit tests, which may import any file."""
    text = NO_CODE.sub(" ", text)
    while match := re.search(r"#\[cfg\(test\)\]\s*(?:pub(?:\(\w+\))? )?mod \w+ \{", text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        text = text[: match.start()] + text[end:]
    return text


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
        code = code_of((source / file).read_text())
        paths = [path for tree in re.findall(r"\buse\s+([^;]+);", code) for path in expand(tree)]
        paths += [path.split("::") for path in re.findall(r"(?<![:\w])(\w+(?:::\w+)+)", re.sub(r"\buse\s+[^;]+;", "", code))]
        for path in paths:
            if path[0] == "crate":
                names = path[1:]
            elif path[0] == "super":
                above = module[:-1]
                rest = path[1:]
                while rest and rest[0] == "super":
                    above, rest = above[:-1], rest[1:]
                names = [*above, *rest]
            elif path[0] == "self":
                names = [*module, *path[1:]]
            elif (*module, path[0]) in known:
                names = [*module, *path]
            else:
                continue
            target = next(known[tuple(names[:n])] for n in range(len(names), -1, -1) if tuple(names[:n]) in known)
            if target != file:
                graph[file].add(target)
    return graph


def folder_of(file: str, above: str = "") -> str:
    """Return the folder of a file within ``above``, or the file's own name. `a.rs` belongs to `a`."""
    return file.removeprefix(above).split("/")[0].removesuffix(".rs")


def folder_imports(graph: Graph, above: str = "") -> Graph:
    """Return the imports between the folders and files that lie directly in the folder ``above``.

    ``above`` ends with a slash, or is empty for the crate's source folder.
    """
    between: Graph = {}
    for file, targets in graph.items():
        if file.startswith(above):
            ours = folder_of(file, above)
            inside = {folder_of(target, above) for target in targets if target.startswith(above)}
            between.setdefault(ours, set()).update(inside - {ours})
    return between


def folder_circles(graph: Graph) -> list[list[str]]:
    """Return the circles between folders, at each depth of the crate."""
    parents = {""}
    for file in graph:
        parts = file.split("/")[:-1]
        parents.update("/".join(parts[: depth + 1]) + "/" for depth in range(len(parts)))
    # A folder's mod.rs names the files of the folder, and these may import what it defines. That is
    # no circle, so mod.rs and lib.rs are left out.
    found = []
    for above in sorted(parents):
        between = folder_imports(graph, above)
        for ours in ("mod", "lib") if above else ():
            between.pop(ours, None)
        found += [[above + name for name in circle] for circle in circles(between)]
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that import each other, directly or through others, each sorted."""
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
    """Return the inherent impls that lie in another folder than their type.

    Such an impl is an import that no `use` shows.
    """
    written = [file for file in modules(source).values() if "generated" not in Path(file).parts]
    files = {file: code_of((source / file).read_text()) for file in written}
    home: dict[str, set[str]] = {}
    for file, code in files.items():
        for name in re.findall(r"^[ \t]*(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|type|union) (\w+)", code, re.MULTILINE):
            home.setdefault(name, set()).add(folder_of(file))
    found = []
    for file, code in files.items():
        for header in re.findall(r"^[ \t]*impl\b([^{;]*)\{", code, re.MULTILINE):
            if re.search(r"\bfor\s+[^<]", header):
                continue
            name = re.match(r"\w+", without_generics(header).strip())
            if name and folder_of(file) not in home.get(name[0], set()):
                found.append(f"{file}: impl {name[0]}")
    return found


def without_generics(header: str) -> str:
    """Return the header of an impl without its angle brackets and the text in them."""
    header = header.replace("->", "  ")
    while "<" in header:
        shorter = re.sub(r"<[^<>]*>", "", header)
        if shorter == header:
            break
        header = shorter
    return header
