"""For mkdocstrings: the docstrings' own marks for formulas, names and examples, in the words of Markdown."""

import re

import griffe

ROLES = re.compile(r":(?:class|data|func|meth|mod):`([^`]+)`")
INLINE = re.compile(r":math:`([^`]+)`")
# A formula goes on to the next empty line.
FORMULAS = re.compile(r"^([ ]*)\.\. math::(.*\n?(?:.+\n?)*)", re.MULTILINE)
# An example within the text has no indentation; those of a section have.
EXAMPLES = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)


def in_markdown(text: str) -> str:
    """A docstring with its formulas between dollars and its examples as code, which roles become too."""

    def formula(found: re.Match) -> str:
        lines = ("$$", " ".join(found[2].split()), "$$")
        return "\n".join(found[1] + line for line in lines) + "\n"

    text = FORMULAS.sub(formula, text)
    text = INLINE.sub(r"$\1$", text)
    text = EXAMPLES.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
    # The section is in the plural for griffe, and otherwise plain text.
    text = re.sub(r"^([ ]*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return ROLES.sub(r"`\1`", text)


class Markdown(griffe.Extension):
    def on_instance(self, *, obj, **arguments) -> None:
        if obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)
