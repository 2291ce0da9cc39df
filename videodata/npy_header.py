"""Headers of .npy files whose first axis is not known yet."""

LARGEST_COUNT = 10**12  # room that the header keeps for N


def npy_header(count: int, sequence_shape: tuple[int, ...]) -> bytes:
    """Header (.npy format 1.0) of a uint8 array (count, *sequence_shape); its length does not depend on count."""

    def fields(n: int) -> bytes:
        return repr({"descr": "|u1", "fortran_order": False, "shape": (n, *sequence_shape)}).encode("ascii")

    prefix = len(b"\x93NUMPY") + 4
    total = -(-(prefix + len(fields(LARGEST_COUNT)) + 1) // 64) * 64  # numpy wants the data aligned to 64 bytes
    text = fields(count).ljust(total - prefix - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
