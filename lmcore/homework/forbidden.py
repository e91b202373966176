"""Find calls that an exercise does without, because they would do it for you.

Reads the source only, so it finds what is written, not what is hidden on purpose.
"""

import ast
import textwrap

_KNOWN_ALIASES = {
    "torch": "torch",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "np": "numpy",
    "numpy": "numpy",
}


def find(source: str, names: list[str]) -> list[str]:
    """List which of the given full names a piece of code uses.

    Imports under another name are followed. A function of torch counts also as a
    method, ``x.tril()`` uses ``torch.tril``; one of lmcore also without its module.

    Raises:
        SyntaxError: if the source is not Python.

    >>> find("def f(x): return F.softmax(x.tril(), -1)", ["torch.tril", "torch.triu"])
    ['torch.tril']
    """
    tree = ast.parse(textwrap.dedent(source))
    aliases = dict(_KNOWN_ALIASES)
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                used.add(item.name)
                first = item.name.partition(".")[0]
                aliases[item.asname or first] = item.name if item.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for item in node.names:
                used.add(f"{node.module}.{item.name}")
                aliases[item.asname or item.name] = f"{node.module}.{item.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used.add(aliases.get(node.id, node.id))
        elif isinstance(node, ast.Attribute):
            used |= _full_names(node, aliases)
    return [name for name in names if _is_used(name, used)]


def _is_used(name: str, used: set[str]) -> bool:
    if name in used or f"lmcore.{name}" in used:
        return True
    # A function of lmcore that was written in the same notebook has no module there.
    return not name.startswith("torch.") and name.rpartition(".")[2] in used


def _full_names(node: ast.Attribute, aliases: dict[str, str]) -> set[str]:
    names, owner = [node.attr], node.value
    while isinstance(owner, ast.Attribute):
        names.append(owner.attr)
        owner = owner.value
    if not isinstance(owner, ast.Name):
        return {f"torch.{node.attr}"}  # a method of what some call returned
    chain = ".".join([aliases.get(owner.id, owner.id), *reversed(names)])
    return {chain} if owner.id in aliases else {chain, f"torch.{node.attr}"}
