"""The demo model's tasks that need nothing but text."""

from __future__ import annotations

from mimo_engine.demo.arithmetic_tasks import Sums, WordProblems
from mimo_engine.demo.json_task import JsonAnswer
from mimo_engine.demo.list_tasks import CountItems, ReverseList, SortList
from mimo_engine.demo.needle_task import Needle
from mimo_engine.demo.task import Task
from mimo_engine.demo.tool_tasks import ToolCall, ToolResult

__all__ = ["TEXT_TASKS"]

TEXT_TASKS: tuple[Task, ...] = (
    Sums(),
    WordProblems(),
    ReverseList(),
    CountItems(),
    SortList(),
    Needle(),
    ToolCall(),
    ToolResult(),
    JsonAnswer(),
)
