"""The few PTX instructions that kernels write out, on 32-bit words in int64 tensors."""

import re

import torch

MASK = 0xFFFFFFFF


def run(asm, num_results, *operands):
    """Registers $0 .. of a block of instructions after it ran; operands follow the results."""
    text = str(getattr(asm, "value", asm)).strip().strip("{}")
    registers = {f"${num_results + i}": value & MASK for i, value in enumerate(operands)}
    for line in text.split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        name, _, rest = line.strip().partition(" ")
        target, *sources = (part.strip() for part in rest.split(","))
        values = [
            registers[source] if source in registers else number(source) for source in sources
        ]
        registers[target] = INSTRUCTIONS[name](*values) & MASK
    return [registers[f"${i}"] for i in range(num_results)]


def number(text):
    assert re.fullmatch(r"\d+|0x[0-9a-f]+", text), text
    return torch.tensor(int(text, 0))


def lop3(a, b, c, table):
    """Bit (4 a + 2 b + c) of the table, for each bit."""
    out = torch.zeros((), dtype=torch.int64)
    for i in range(8):
        if int(table) >> i & 1:
            parts = [x if i & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1))]
            out = out | (parts[0] & parts[1] & parts[2])
    return out


def prmt(a, b, selector):
    """Four bytes picked from the eight of a (0 .. 3) and b (4 .. 7)."""
    both = a | b << 32
    out = torch.zeros((), dtype=torch.int64)
    for i in range(4):
        choice = selector >> 4 * i & 15
        assert (choice < 8).all(), "replicating a sign is not written here"
        out = out | (both >> 8 * choice & 255) << 8 * i
    return out


def fma_bf16x2(a, b, c):
    out = torch.zeros((), dtype=torch.int64)
    for shift in (0, 16):
        x, y, z = (floats(value >> shift & 0xFFFF) for value in (a, b, c))
        # The product is exact in double, and so is the sum where z is a zero.
        bits = (x * y + z).bfloat16().view(torch.int16).long() & 0xFFFF
        out = out | bits << shift
    return out


def floats(bits):
    return (bits << 16).int().view(torch.float32).double()


INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "add.u32": lambda a, b: a + b,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "fma.rn.bf16x2": fma_bf16x2,
}
