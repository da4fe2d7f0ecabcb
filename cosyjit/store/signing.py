"""Signatures of records, by ed25519 keys, in DSSE envelopes (https://github.com/secure-systems-lab/dsse).

Any tool that reads such envelopes can check them. The keys are PEM files, as OpenSSL writes them; `cryptography` is
imported only where there is a key.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cosyjit.errors import SelectionError, SignatureError, line
from cosyjit.fs import files

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_PAYLOAD: Final = "application/vnd.in-toto+json"
_PUBLIC: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
_LARGEST: Final = 1 << 20
"""In bytes, what is read of a file with keys."""

_PRIVATE_HINT: Final = "make one with `openssl genpkey -algorithm ed25519 -out KEY`"
_PUBLIC_HINT: Final = "make one of the private key with `openssl pkey -in KEY -pubout -out PUBLIC`"


class Envelope(NamedTuple):
    """Signed bytes, and what are said to be signatures of them.

    Attributes:
        payload: the bytes that were signed.
        signatures: by the identifiers of keys.
    """

    payload: bytes
    signatures: Mapping[str, bytes]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "Envelope":
        """The envelope in a JSON object.

        Raises:
            LookupError, TypeError, ValueError: the object is not an envelope.
        """
        if document["payloadType"] != _PAYLOAD:
            raise ValueError(f"a payload of type {document['payloadType']!r}")
        signatures = {str(each["keyid"]): _decoded(each["sig"]) for each in document["signatures"]}
        return cls(_decoded(document["payload"]), signatures)

    @property
    def document(self) -> dict[str, Any]:
        """The envelope as DSSE has it in JSON."""
        signatures = [{"keyid": name, "sig": _encoded(each)} for name, each in self.signatures.items()]
        return {"payloadType": _PAYLOAD, "payload": _encoded(self.payload), "signatures": signatures}


def is_envelope(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object is an envelope, and not the payload of one."""
    return "payloadType" in document


class Signer:
    """A private key.

    Attributes:
        path: the file that it is in.
        keyid: the SHA-256 of its public half, in hex.
    """

    def __init__(self, path: Path) -> None:
        """Read a private key.

        Raises:
            SelectionError: the file has no private ed25519 key.
        """
        self.path = files.absolute(path)
        with _reading(path, _PRIVATE_HINT):
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key

            key = load_pem_private_key(_content(self.path), None)
            if not isinstance(key, Ed25519PrivateKey):
                raise TypeError("a key of another kind")
        self._key = key
        self.keyid = _keyid(key.public_key())

    def sign(self, payload: bytes) -> Envelope:
        """Sign bytes."""
        return Envelope(payload, {self.keyid: self._key.sign(_authenticated(payload))})

    def has_signed(self, envelope: Envelope) -> bool:
        """Whether an envelope has a signature of its content by this key."""
        signature = envelope.signatures.get(self.keyid)
        return signature is not None and _verifies(self._key.public_key(), signature, envelope.payload)


class TrustedKeys:
    """Public keys, of which a signature by any is enough: the present one, and earlier ones.

    Attributes:
        path: the file that they are in.
        keyids: their identifiers.
    """

    def __init__(self, path: Path) -> None:
        """Read public keys.

        Raises:
            SelectionError: the file has no public key, or one that is not an ed25519 key.
        """
        self.path = files.absolute(path)
        with _reading(path, _PUBLIC_HINT):
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
            from cryptography.hazmat.primitives.serialization import load_pem_public_key

            keys = [load_pem_public_key(each) for each in _PUBLIC.findall(_content(self.path))]
            if not keys:
                raise ValueError("no PUBLIC KEY in it")
            self._keys = {_keyid(key): key for key in keys if isinstance(key, Ed25519PublicKey)}
            if len(self._keys) < len(set(map(_keyid, keys))):
                raise ValueError("a key of another kind")
        self.keyids = tuple(self._keys)

    def check(self, envelope: Envelope | None, where: str) -> None:
        """Make sure that one of the keys has signed an envelope.

        Args:
            envelope: None for a document without one.
            where: the document, which messages begin with.

        Raises:
            SignatureError: none of the keys has signed it.
        """
        if envelope is None:
            raise self._refusal(where, "is not signed")
        for keyid, signature in envelope.signatures.items():
            if keyid in self._keys and _verifies(self._keys[keyid], signature, envelope.payload):
                return
        if envelope.signatures.keys() & self._keys.keys():
            raise self._refusal(where, "has a signature of other content")
        signers = ", ".join(keyid[:16] for keyid in envelope.signatures) or "nobody"
        raise self._refusal(where, f"is signed by {signers} alone")

    def _refusal(self, where: str, problem: str) -> SignatureError:
        return SignatureError(
            f"{where}: {problem}, and {self.path} requires a signature; export where that key is, with --sign"
        )


def _verifies(key: "Ed25519PublicKey", signature: bytes, payload: bytes) -> bool:
    """Whether a signature is one of a payload by a key."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, _authenticated(payload))
    except InvalidSignature:
        return False
    return True


def _authenticated(payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding, which includes the type of the payload."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _keyid(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@contextmanager
def _reading(path: Path, hint: str) -> Iterator[None]:
    """Translate errors of the block into a SelectionError in one line, which quotes nothing of the file."""
    try:
        yield
    except ImportError:
        raise SelectionError(f"{path}: needs a package that is missing; install cosyjit[signing]") from None
    except OSError as error:
        raise SelectionError(f"{path}: cannot be read ({error.strerror}); name a file with a key") from None
    except Exception as error:  # noqa: BLE001  (cryptography raises errors of its own, and others)
        raise SelectionError(f"{path}: is not an ed25519 key in PEM ({line(error)}); {hint}") from None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decoded(text: Any) -> bytes:
    content = base64.b64decode(text, validate=True)
    if _encoded(content) != text:
        raise binascii.Error("base64 that is not as it is written")
    return content
