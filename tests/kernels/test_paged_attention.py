"""Paged attention against the older path: the same batches, as groups made slot by slot."""

import random
from dataclasses import dataclass

import pytest
import torch
from kernel_place import ON_GPU

from mimo_engine.kernels.attention import AttentionGroup, PagedRows, attention
from mimo_engine.kernels.attention import reference as plain
from mimo_engine.kernels.attention import triton as kernels
from mimo_engine.kernels.op import relative_error

# float32 on both sides: sums in another order. One key that is missed or seen too many weighs more.
# A GPU serves bfloat16 alone.
DTYPE, TOLERANCE = (torch.bfloat16, 1e-2) if ON_GPU else (torch.float32, 1e-5)


@dataclass(frozen=True)
class Batch:
    """starts and counts of sequences, and how many rows count; those that start below 0 are
    padding."""

    starts: list[int]
    counts: list[int]
    counting: list[int]
    lows: list[int]
    table: list[list[int]]
    page: int
    window: int | None
    tensors: dict[str, torch.Tensor | None]

    @property
    def first_rows(self):
        return [sum(self.counts[:i]) for i in range(len(self.counts) + 1)]

    @property
    def last_positions(self):
        return [s + n - 1 for s, n in zip(self.starts, self.counting, strict=True)]

    def paged(self, max_len):
        def tensor(values):
            return torch.tensor(values, dtype=torch.int32, device=self.tensors["q"].device)

        return PagedRows(
            first_row=tensor(self.first_rows),
            first_position=tensor(self.starts),
            last_position=tensor(self.last_positions),
            visible_from=tensor(self.lows),
            page_table=tensor(self.table),
            page_size=self.page,
            max_rows=max(self.counts),
            max_len=max_len,
        )

    def groups(self):
        """Groups for every sequence that is none of padding: of the rows that count, and of each of
        the others, which is at the last one's position."""
        device = self.tensors["q"].device

        def tensor(values):
            return torch.tensor([values], device=device)

        groups = []
        for s, (start, count) in enumerate(zip(self.starts, self.counting, strict=True)):
            if start < 0 or not count:
                continue
            slots = self.slots(s, range(self.lows[s], start + count))
            first, stop = self.first_rows[s : s + 2]
            parts = [(range(first, first + count), start)]
            parts += [
                (range(row, row + 1), start + count - 1) for row in range(first + count, stop)
            ]
            groups += [
                AttentionGroup(
                    rows=tensor(list(rows)),
                    first_position=tensor(position)[0][None],
                    kv_slots=tensor(slots),
                    kv_first=tensor(self.lows[s])[0][None],
                )
                for rows, position in parts
            ]
        return groups

    def slots(self, s, positions):
        return [self.table[s][p // self.page] * self.page + p % self.page for p in positions]

    def hide_what_does_not_count(self):
        for s, (start, last) in enumerate(zip(self.starts, self.last_positions, strict=True)):
            hidden = self.slots(s, range(last + 1, start + self.counts[s])) if start >= 0 else []
            for name in ("k_pool", "v_pool"):
                self.tensors[name][hidden] = float("nan")

    def padding_rows(self):
        return [
            row
            for s, start in enumerate(self.starts)
            for row in range(self.first_rows[s], self.first_rows[s + 1])
            if start < 0
        ]


def random_batch(rng, device, longest=300, most_rows=40):
    window = rng.choice([None, None, 1, 5, 17, 40])
    page = rng.choice([16, 32])
    counts = [rng.choice([0, 1, 1, 2, 3, 4, 5, 8, 9, most_rows]) for _ in range(rng.randint(1, 5))]
    counts[-1] = max(1, counts[-1])
    starts = [rng.choice([0, 1, 15, 16, rng.randint(0, longest)]) for _ in counts]
    padding = rng.randrange(3 * len(counts))
    if padding < len(counts):
        starts[padding] = -counts[padding] - 1
    counting = [
        rng.randint(1, count) if count and start >= 0 and rng.random() < 0.4 else count
        for start, count in zip(starts, counts, strict=True)
    ]
    lows = [rng.choice([0, 0, rng.randint(0, max(0, start))]) for start in starts]
    num_pages = -(-(longest + most_rows) // page)
    pages = list(range(num_pages * len(counts)))
    rng.shuffle(pages)
    table = [pages[i * num_pages : (i + 1) * num_pages] for i in range(len(counts))]
    num_kv_heads, ratio = rng.choice([(2, 1), (1, 3), (2, 4), (1, 16)])
    qk, v = rng.choice([(48, 16), (32, 32), (80, 64)])

    def tensor(*shape):
        return torch.randn(shape, device=device)

    tensors = {
        "q": tensor(sum(counts), num_kv_heads * ratio, qk),
        "k_pool": tensor(len(pages) * page, num_kv_heads, qk),
        "v_pool": tensor(len(pages) * page, num_kv_heads, v),
        "sink": tensor(num_kv_heads * ratio) if rng.random() < 0.5 else None,
    }
    batch = Batch(starts, counts, counting, lows, table, page, window, tensors)
    batch.hide_what_does_not_count()
    return batch


@pytest.mark.parametrize("seed", range(200 if ON_GPU else 24))
def test_paged_attention_is_attention_over_the_same_slots(seed, device, poisoned):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch = random_batch(rng, device)
    # What a captured graph would say is as good as the truth.
    rows = batch.paged(max_len=rng.choice([340, 5000]))
    named = {**batch.tensors, "num_visible_tokens": batch.window}
    named = {k: in_dtype(value) for k, value in named.items()}
    expected = attention(groups=batch.groups(), **named)
    expected[batch.padding_rows()] = 0
    assert relative_error(plain.paged_attention(rows=rows, **named), expected) <= TOLERANCE
    assert relative_error(kernels.paged_attention(rows=rows, **named), expected) <= TOLERANCE


def in_dtype(value):
    return value.to(DTYPE) if isinstance(value, torch.Tensor) else value


def test_a_captured_call_follows_what_its_tables_say_later(device):
    """A row each for three sequences, whose lengths and pages change in place."""
    rng = random.Random(0)
    torch.manual_seed(0)
    pages = list(range(3 * 20))
    tensors = {
        "q": torch.randn(3, 8, 48, device=device),
        "k_pool": torch.randn(60 * 16, 2, 48, device=device),
        "v_pool": torch.randn(60 * 16, 2, 16, device=device),
        "sink": torch.randn(8, device=device),
    }
    tensors = {name: in_dtype(value) for name, value in tensors.items()}

    def rows_at(starts):
        rng.shuffle(pages)
        table = [pages[:20], pages[20:40], pages[40:]]
        batch = Batch(starts, [1, 1, 1], [1, 1, 1], [0, 3, 0], table, 16, None, tensors)
        return batch.paged(max_len=5000)

    def call(rows):
        return kernels.paged_attention(rows=rows, num_visible_tokens=None, **tensors)

    rows = rows_at([5, -1, 200])
    out = call(rows)
    if ON_GPU:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(rows)
    for starts in ([300, 17, -1], [0, 129, 255]):
        later = rows_at(starts)
        rows.first_position.copy_(later.first_position)
        rows.last_position.copy_(later.last_position)
        rows.page_table.copy_(later.page_table)
        if ON_GPU:
            graph.replay()
        else:
            out = call(rows)
        expected = plain.paged_attention(rows=later, num_visible_tokens=None, **tensors)
        assert relative_error(out, expected) <= TOLERANCE
    assert not kernels._tickets(device).any()
