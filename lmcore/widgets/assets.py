"""Put the JavaScript of a figure together from its files.

The files are modules that import each other, so that Node and a browser can run them as
they are. A page without a server cannot fetch a second file, so a figure carries all of
its code as one text.
"""

import re
from importlib import resources

_LOCAL_IMPORT = re.compile(r'^import\s[^;]*?from "\./[\w.]+";\n', re.MULTILINE)


def read(name: str) -> str:
    """Return the text of a file of this package.

    >>> read("page.js").startswith("//")
    True
    """
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def bundle(*names: str) -> str:
    """Join JavaScript modules into one, without the imports between them.

    Args:
        names: the files in the order in which they are needed; the figure's view last

    Returns:
        The text of one module.

    >>> bundle("attention_math.js", "page.js", "explorer.js").count("import ")
    0
    """
    return "\n".join(_LOCAL_IMPORT.sub("", read(name)) for name in names)
