"""Two machines that know one short code agree on a key; whoever does not know it learns nothing to try codes on.

CPace (Abdalla, Haase, Hesse 2021) over a group of squares modulo a safe prime. The code and a nonce choose the
generator g; both sides send g to a secret power, a number that looks the same for every code. Only who knows the same g
gets the same product of powers. So a guess can only be tried by taking part, once each time: a recorded pairing says
nothing about its code, and the code nothing about the keys of a recorded pairing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from edgevla.errors import WireError

PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7"
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C"
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF",
    16,
)
"""RFC 3526, group 15: 2^3072 - 2^3008 - 1 + 2^64 * (floor(2^2942 * pi) + 1690314)."""
SIZE = 384
"""Bytes of a share."""
POWER_BITS = 256
"""Of a secret power: twice the group's 128 bits of security (NIST SP 800-56A), and quick on a small computer."""


class Exchange:
    """One side of one agreement; never used twice. share: what the other side is sent."""

    def __init__(self, code: str, nonce: bytes) -> None:
        self._power = 1 + secrets.randbelow(2**POWER_BITS - 1)
        self.share = pow(_generator(code, nonce), self._power, PRIME).to_bytes(SIZE, "big")

    def key(self, other: bytes, transcript: Iterable[bytes]) -> bytes:
        """32 bytes that the other side has too, if it began with the same code and saw the same transcript.

        Raises:
            WireError: `other` is no share.
        """
        number = int.from_bytes(other, "big")
        if len(other) != SIZE or not 1 < number < PRIME - 1:
            raise WireError("what was sent is no element of the group", "range")
        common = pow(number, 2 * self._power, PRIME).to_bytes(SIZE, "big")  # a square, whatever was sent
        return hashlib.sha256(_joined([b"edgevla pairing key", common, *transcript])).digest()


def proof(key: bytes, side: str) -> bytes:
    """That one has the key; each side has its own, so that none can be sent back."""
    return hmac.digest(key, b"edgevla pairing proof " + side.encode(), "sha256")


def _generator(code: str, nonce: bytes) -> int:
    """A square of which nobody knows the logarithm to any base."""
    text = _joined([b"edgevla pairing generator", code.encode(), nonce])
    number = int.from_bytes(hashlib.shake_256(text).digest(SIZE + 32), "big") % PRIME
    return pow(number, 2, PRIME)


def _joined(parts: Iterable[bytes]) -> bytes:
    """Each with its length, so that two different lists never give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
