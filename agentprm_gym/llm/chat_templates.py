"""What a chat template of somebody else's tokenizer may hold. The library runs it in a sandbox, which does not bound it.

The plain ways to take forever are refused: powers, products with a large number, loops over numbers inside each other.
Well-known models have macros that call themselves and blocks that capture text, so these are allowed, and a template made with
care may still take long.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, TemplateError, nodes

#: Characters; the longest of well-known models have about 20,000.
MAX_SOURCE = 200_000
# A loop over numbers, and the factor of a product, such as a line of hyphens.
_MOST = 1_000


def check_chat_template(source: Any, what: str) -> None:
    """Refuse a chat template that may take forever or fill the memory.

    Args:
        source: the template, or several by their names.
        what: the model, for messages.

    Raises:
        ValueError: it cannot be read, or holds one of these.
    """
    if source is None:
        return
    for text in source.values() if isinstance(source, dict) else [source]:
        why = _fault(text)
        if why is not None:
            raise ValueError(f"{what}: its chat template {why}; take another tokenizer, or remove its chat_template")


def _fault(text: Any) -> str | None:
    """What is wrong with a chat template; ``None``: nothing."""
    if not isinstance(text, str) or len(text) > MAX_SOURCE:
        return f"is no text of at most {MAX_SOURCE:,} characters"
    # The extensions that the library has, and its tag for what the model says.
    text = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    text = text.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    text = text.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"], autoescape=False).parse(text)
    except (TemplateError, RecursionError) as error:
        return f"cannot be read ({error})"
    if next(tree.find_all(nodes.Pow), None) is not None:
        return "computes a power"
    for product in tree.find_all(nodes.Mul):
        factors = [side.value for side in (product.left, product.right) if isinstance(side, nodes.Const)]
        if any(isinstance(factor, (int, float)) and factor > _MOST for factor in factors):
            return f"computes a product with a factor above {_MOST:,}"
    for loop in tree.find_all(nodes.For):
        if _ranges(loop.iter) and any(_ranges(inner.iter) for body in loop.body for inner in _loops(body)):
            return "has loops over numbers inside each other"
    return None


def _loops(node: nodes.Node) -> list[nodes.For]:
    """The loops in a node, itself included."""
    return ([node] if isinstance(node, nodes.For) else []) + list(node.find_all(nodes.For))


def _ranges(values: nodes.Node) -> bool:
    """Whether a loop goes over numbers."""
    calls = [*([values] if isinstance(values, nodes.Call) else []), *values.find_all(nodes.Call)]
    return any(isinstance(call.node, nodes.Name) and call.node.name == "range" for call in calls)
