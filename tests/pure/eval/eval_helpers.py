"""Small files in the formats of the public datasets, and answers as a server gives them."""

import json

from mimo_engine.eval.api import Reply


def write_jsonl(path, rows):
    """Returns the path as text, as the command line gives it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reply(content, *, finish_reason="stop", **message):
    return Reply(
        message={"role": "assistant", "content": content, **message}, finish_reason=finish_reason
    )


def graded(item, content, **message):
    """What the item makes of this answer."""
    return item.pose().grade(reply(content, **message))


def gsm8k_rows(num_rows):
    """Row i asks for 10 i."""
    return [
        {
            "question": f"Tom has {i} bags of 10 apples. How many apples?",
            "answer": f"He has {i}*10=<<{i}*10={10 * i}>>{10 * i} apples.\n#### {10 * i}",
        }
        for i in range(num_rows)
    ]
