"""Seeds for all randomness of the project: one for each purpose, by name."""

import hashlib


def stable_seed(*key: int | str) -> int:
    """Compute a 64-bit seed from `key`. It is the same in every process and on every platform, unlike Python's `hash`.

    To keep purposes with the same user's seed independent, add the name of the purpose to the key.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
