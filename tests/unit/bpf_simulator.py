"""A simulator of classic BPF as seccomp runs it, written from the kernel's description of each instruction."""

from struct import iter_unpack, pack, unpack


def decode(program, order="="):
    return list(iter_unpack(f"{order}HBBI", program))


def run(program, number, token, args=(), pointer=0, order="<"):
    """Return (verdict, instructions executed); ``order`` is that of the machine's bytes, as struct has it."""
    args = tuple(args) + (0,) * (6 - len(args))
    data = pack(f"{order}iIQ6Q", number if number < 2**31 else number - 2**32, token, pointer, *args)
    words = unpack(f"{order}16I", data)
    at, accumulator, steps = 0, 0, 0
    instructions = program if isinstance(program, list) else decode(program)
    while True:
        code, yes, no, k = instructions[at]
        at += 1
        steps += 1
        if code == 0x15:  # the frequent ones first
            at += yes if accumulator == k else no
        elif code == 0x35:
            at += yes if accumulator >= k else no
        elif code == 0x25:
            at += yes if accumulator > k else no
        elif code == 0x45:
            at += yes if accumulator & k else no
        elif code == 0x20:
            assert k % 4 == 0
            accumulator = words[k // 4]
        elif code == 0x06:
            return k, steps
        elif code == 0x05:
            at += k
        elif code == 0x54:
            accumulator &= k
        else:
            raise AssertionError(f"instruction {code:#x}")
