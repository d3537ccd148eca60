"""The items that a request adds to its conversation, as they are kept and listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mimo_engine.errors import RequestError
from mimo_engine.server.responses.conversation import Item, kind_of
from mimo_engine.server.responses.open_items import new_id
from mimo_engine.server.responses.store import KeptResponse, ResponseStore

__all__ = ["input_items", "items_before", "listed"]

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}


def input_items(given: str | Sequence[Item], store: ResponseStore) -> list[Item]:
    """Each with its type and an id, references replaced by what they name, else as sent.

    RequestError: a reference to an item that is not kept, or an id that is none.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_input_item(item, f"input[{i}]", store) for i, item in enumerate(given)]


def _input_item(item: Item, where: str, store: ResponseStore) -> Item:
    kind, item_id = kind_of(item), item.get("id")
    if not isinstance(item_id, str | None):
        raise RequestError(f"{where}.id must be a string", param=f"{where}.id")
    if kind == "item_reference":
        found = store.find_item(item_id) if item_id is not None else None
        if found is None:
            raise RequestError(
                f"{where}: no item with the id {item_id!r:.80} is kept; send the item itself",
                param=where,
            )
        return found
    prefix = _PREFIXES.get(kind, "item") if isinstance(kind, str) else "item"
    return {**item, "type": kind, "id": item_id or new_id(prefix)}


def items_before(kept: KeptResponse) -> list[Item]:
    """All that the model read before it wrote `kept`, oldest first, instructions apart."""
    *earlier, last = kept.line()
    items = [item for one in earlier for item in (*one.input_items(), *one.output_items())]
    return [*items, *last.input_items()]


def listed(
    items: Sequence[Item], *, limit: int, order: Literal["asc", "desc"], after: str | None
) -> dict[str, Any]:
    """One page of `items` (oldest first). RequestError: `after` is the id of none."""
    ordered = list(items if order == "asc" else reversed(items))
    if after is not None:
        place = next((i for i, item in enumerate(ordered) if item["id"] == after), None)
        if place is None:
            raise RequestError(f"no item has the id {after!r:.80}", param="after")
        ordered = ordered[place + 1 :]
    page = [_as_listed(item) for item in ordered[:limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }


def _as_listed(item: Item) -> Item:
    """A message's content is a list there, and every item has a status."""
    content = item.get("content")
    if item["type"] == "message" and isinstance(content, str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": content}
        if kind == "output_text":
            part["annotations"] = []
        item = {**item, "content": [part]}
    return {"status": "completed", **item}
