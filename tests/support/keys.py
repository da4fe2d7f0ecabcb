"""Pairs of keys in files, as OpenSSL writes them."""

from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


class Pair(NamedTuple):
    """The files of a private key and of its public half."""

    private: Path
    public: Path


def pair(directory: Path, name: str = "key") -> Pair:
    """A new pair in a directory."""
    key = Ed25519PrivateKey.generate()
    made = Pair(directory / f"{name}.pem", directory / f"{name}.pub.pem")
    made.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    made.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return made
