"""Where every random number of the project comes from: a seed for each purpose, by name."""

import hashlib


def stable_seed(*key: int | str) -> int:
    """A 64-bit seed that follows from `key` alone, in every process and on every platform (Python's `hash` does not).

    Purposes that share a user's seed stay independent by putting their name into the key.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
