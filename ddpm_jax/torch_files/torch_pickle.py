"""The pickles inside PyTorch's checkpoints, read without running anything.

A pickle is a program, and Python's own reader runs it. The reader here knows only the opcodes of `_OPCODES`, of which
none imports, and calls only the functions of `torch_names.CALLS`.
"""

import collections
import dataclasses
import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from ddpm_jax.torch_files.torch_names import CALLS, DTYPES, STORAGES, Global, Storage, is_count, put, show

# A tensor takes about fifty steps of four bytes and more. Unbounded, a file of empty lists would take sixty times
# its size in memory.
_FEWEST_STEPS, _MOST_STEPS = 1024, 1_000_000


@dataclasses.dataclass(frozen=True)
class _Machine:
    """A pickle being read: its bytes, a stack for every open mark, the memo, and the storages met so far."""

    source: io.BytesIO
    size: int
    storages: dict[str, Storage]
    stacks: list[list[Any]]
    memo: dict[int, Any]


def _take(m: _Machine, count: int) -> bytes:
    got = m.source.read(count)
    if len(got) < count:
        raise ValueError("cut short: its pickle ends in the middle")
    return got


def _number(m: _Machine, layout: str) -> Any:
    return struct.unpack(layout, _take(m, struct.calcsize(layout)))[0]


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("damaged: its pickle holds a string that isn't UTF-8") from None


def _string(m: _Machine, layout: str) -> None:
    length = _number(m, layout)
    if length < 0:
        raise ValueError(f"damaged: its pickle holds a string of length {length}")
    _push(m, _utf8(_take(m, length)))


def _long(m: _Machine) -> None:
    _push(m, int.from_bytes(_take(m, _number(m, "<B")), "little", signed=True))


def _push(m: _Machine, value: Any) -> None:
    m.stacks[-1].append(value)


def _pop(m: _Machine, count: int) -> list[Any]:
    stack = m.stacks[-1]
    if len(stack) < count:
        raise ValueError("damaged: its pickle takes values that it never made")
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def _to_mark(m: _Machine) -> list[Any]:
    if len(m.stacks) == 1:
        raise ValueError("damaged: its pickle closes a group that it never opened")
    return m.stacks.pop()


def _top(m: _Machine) -> Any:
    (value,) = _pop(m, 1)
    _push(m, value)
    return value


def _remember(m: _Machine, index: int) -> None:
    m.memo[index] = _top(m)


def _recall(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise ValueError(f"damaged: its pickle recalls value {index}, which it never kept")
    _push(m, m.memo[index])


def _extend(m: _Machine, items: list[Any]) -> None:
    target = _top(m)
    if type(target) is not list:
        raise ValueError(f"damaged: its pickle appends to {show(target)}")
    target.extend(items)


def _set(m: _Machine, items: list[Any]) -> None:
    put(_top(m), items)


def _ask(m: _Machine, module: str, name: str) -> None:
    asked = f"{module}.{name}"
    if asked not in CALLS and asked not in STORAGES and asked not in DTYPES:
        raise ValueError(
            f"refused: the file asks for {show(asked)}; a checkpoint needs tensors and plain containers only"
        )
    _push(m, Global(asked))


def _ask_by_lines(m: _Machine) -> None:
    lines = [m.source.readline(256) for _ in range(2)]
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError("cut short or damaged: its pickle asks for a name that doesn't end")
    _ask(m, _utf8(lines[0][:-1]), _utf8(lines[1][:-1]))


def _ask_by_stack(m: _Machine) -> None:
    module, name = _pop(m, 2)
    if type(module) is not str or type(name) is not str:
        raise ValueError(f"refused: the file asks for {show(name)} of {show(module)}, which isn't a name")
    _ask(m, module, name)


def _call(m: _Machine) -> None:
    asked, given = _pop(m, 2)
    if not isinstance(asked, Global) or asked.name not in CALLS or type(given) is not tuple:
        raise ValueError(f"refused: the file calls {show(asked)} with {show(given)}")
    function, fewest, most = CALLS[asked.name]
    if not fewest <= len(given) <= most:
        raise ValueError(f"damaged: {asked.name} takes {fewest} to {most} arguments, got {len(given)}")
    _push(m, function(*given))


def _build(m: _Machine) -> None:
    """A state dict carries its modules' versions as an attribute, which nothing here needs."""
    (state,) = _pop(m, 1)
    if type(_top(m)) is not collections.OrderedDict or type(state) is not dict:
        raise ValueError(f"refused: the file sets attributes of {show(_top(m))}")


def _storage(m: _Machine) -> None:
    (given,) = _pop(m, 1)
    if type(given) is not tuple or len(given) not in (5, 6) or type(given[0]) is not str or given[0] != "storage":
        raise ValueError(f"damaged: a storage must be declared in a tuple of five or six, got {show(given)}")
    kind, key, numel = given[1], given[2], given[4]
    if not isinstance(kind, Global) or kind.name not in STORAGES or type(key) is not str or not is_count(numel):
        raise ValueError(f"damaged: a storage is declared as {show(kind)} with key {show(key)} and size {show(numel)}")
    if len(given) == 6 and given[5] is not None:
        raise ValueError("refused: it holds views of storages, as PyTorch did before 0.4")
    found = Storage(key, STORAGES[kind.name], numel)
    if found.nbytes > m.size:
        raise ValueError(f"cut short or damaged: storage {show(key)} takes {found.nbytes} bytes of the file's {m.size}")
    if m.storages.setdefault(key, found) != found:
        raise ValueError(f"damaged: storage {show(key)} is declared twice, and not alike")
    _push(m, found)


# pickletools documents each. STOP is read()'s.
_OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: _take(m, 1),  # PROTO
    b"\x95": lambda m: _take(m, 8),  # FRAME
    b"(": lambda m: m.stacks.append([]),
    b"N": lambda m: _push(m, None),
    b"\x88": lambda m: _push(m, True),
    b"\x89": lambda m: _push(m, False),
    b"K": lambda m: _push(m, _number(m, "<B")),
    b"M": lambda m: _push(m, _number(m, "<H")),
    b"J": lambda m: _push(m, _number(m, "<i")),
    b"G": lambda m: _push(m, _number(m, ">d")),
    b"\x8a": _long,
    b"X": lambda m: _string(m, "<I"),
    b"\x8c": lambda m: _string(m, "<B"),
    b"T": lambda m: _string(m, "<i"),
    b"U": lambda m: _string(m, "<B"),
    b"}": lambda m: _push(m, {}),
    b"]": lambda m: _push(m, []),
    b")": lambda m: _push(m, ()),
    b"t": lambda m: _push(m, tuple(_to_mark(m))),
    b"\x85": lambda m: _push(m, tuple(_pop(m, 1))),
    b"\x86": lambda m: _push(m, tuple(_pop(m, 2))),
    b"\x87": lambda m: _push(m, tuple(_pop(m, 3))),
    b"a": lambda m: _extend(m, _pop(m, 1)),
    b"e": lambda m: _extend(m, _to_mark(m)),
    b"s": lambda m: _set(m, _pop(m, 2)),
    b"u": lambda m: _set(m, _to_mark(m)),
    b"q": lambda m: _remember(m, _number(m, "<B")),
    b"r": lambda m: _remember(m, _number(m, "<I")),
    b"\x94": lambda m: _remember(m, len(m.memo)),
    b"h": lambda m: _recall(m, _number(m, "<B")),
    b"j": lambda m: _recall(m, _number(m, "<I")),
    b"c": _ask_by_lines,
    b"\x93": _ask_by_stack,
    b"R": _call,
    b"b": _build,
    b"Q": _storage,
}


def read(source: io.BytesIO, size: int, storages: dict[str, Storage]) -> Any:
    """Read one pickle from where `source` stands, and leave it just behind.

    Dicts and OrderedDicts come as they are, tensors as `Tensor`, storages as `Storage` and types as `Global`. Lists and
    dicts may hold themselves. Each storage is added to `storages`, by its key; `size` is the file's, in bytes.

    Raises:
        ValueError: for whatever isn't in such a pickle: see the messages above. None names the file.
    """
    m = _Machine(source, size, storages, [[]], {})
    most = min(_FEWEST_STEPS + size // 2, _MOST_STEPS)
    for _ in range(most):
        code = _take(m, 1)
        if code == b".":
            (value,) = _pop(m, 1)
            if len(m.stacks) > 1 or m.stacks[0]:
                raise ValueError("damaged: its pickle ends with values left over")
            return value
        if code not in _OPCODES:
            names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
            what = names.get(code.decode("latin-1"), f"unknown to Python, {code!r}")
            raise ValueError(f"refused: its pickle uses the opcode {what}, which no checkpoint needs")
        _OPCODES[code](m)
    raise ValueError(f"refused: its pickle takes more than {most} steps, in a file of {size} bytes")
