"""Safe reading of the YAML of a study file, which may come from anyone: bounded time and memory, plain data alone."""

import os
import stat
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from icl_bench.errors import SpecError

LARGEST_STUDY = 1 << 16
"""Largest size of a study file, in bytes."""
MOST_NODES = 5_000
"""Largest number of values and keys in a study file."""
DEEPEST_NODE = 10
"""Largest number of lists and mappings in each other; a study needs three."""
LONGEST_NUMBER = 40
"""Largest number of characters of a number."""
TAGS = "tag:yaml.org,2002:"
"""Prefix of the types of YAML."""


class StudyLoader(yaml.SafeLoader):
    """A loader of plain YAML that refuses tags, aliases, repeated keys and excess; dates are text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a value; raise ConstructorError for tags, for aliases, which can expand, and for excess."""
        event = self.peek_event()
        self.nodes += 1
        self.depth += 1
        refused = {
            "aliases are not allowed": isinstance(event, yaml.events.AliasEvent),
            "tags are not allowed": getattr(event, "tag", None) is not None,
            f"more than {MOST_NODES} values": self.nodes > MOST_NODES,
            f"more than {DEEPEST_NODE} levels": self.depth > DEEPEST_NODE,
        }
        for reason, found in refused.items():
            if found:
                raise ConstructorError(None, None, reason, event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; raise ConstructorError for repeated keys, of which YAML would keep the last."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the loader refuses it
            if key in seen:
                raise ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        """Construct a number of bounded length; raise ConstructorError for a longer one."""
        if len(node.value) > LONGEST_NUMBER:
            raise ConstructorError(None, None, f"a number of more than {LONGEST_NUMBER} characters", node.start_mark)
        construct = self.construct_yaml_int if node.tag == TAGS + "int" else self.construct_yaml_float
        number: int | float = construct(node)
        return number

    def construct_date(self, node: Any) -> str:
        """Construct a date as the text that it is."""
        return str(self.construct_scalar(node))


for kind in ("int", "float"):
    StudyLoader.add_constructor(TAGS + kind, StudyLoader.construct_number)
StudyLoader.add_constructor(TAGS + "timestamp", StudyLoader.construct_date)


def read_study_text(path: Path) -> str:
    """Read a regular file of at most 64 KiB in UTF-8; raise SpecError for any other, without reading it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not block
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise SpecError(f"a study is a YAML file that can be read; {path} is no file; check the path")
            data = file.read(LARGEST_STUDY + 1)
        text = data.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise SpecError(f"a study is a YAML file that can be read; {path}: {reason}; check the path") from None
    return text


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse the text of a study file, which messages call `source`; raise SpecError if it is no plain YAML mapping."""
    if len(text.encode(errors="surrogatepass")) > LARGEST_STUDY:
        raise SpecError(f"a study file has at most {LARGEST_STUDY} bytes; {source} has more; split it")
    try:
        plain = yaml.load(text, StudyLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}" if mark else source
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise SpecError(f"a study is plain YAML without tags or aliases; {place}: {why}; correct the file") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise SpecError(f"a study is a YAML mapping; {source} is not; write name:, question:, tasks:, archs:")
    return plain


def line_of(text: str, path: Sequence[int | str]) -> int:
    """Return the line, from 1, of the value at a path in YAML text, or of the last value on it that is there."""
    node, line = yaml.compose(text, StudyLoader), 1
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = [(name, value) for name, value in node.value if name.value == key]
            if not found:
                continue
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line
