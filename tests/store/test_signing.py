"""Signatures that any tool can check, and files that hold no key."""

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as OthersEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer._key import SSlibKey

from cosyjit.errors import SelectionError, SignatureError
from cosyjit.store import signing
from cosyjit.store.signing import Signer, TrustedKeys
from cosyjit.store.store import Store
from tests.support.keys import Pair, pair
from tests.support.processes import start

PAYLOAD: Final = b'{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.fixture
def keys(tmp_path: Path) -> Pair:
    return pair(tmp_path)


def others_key(public: Path, keyid: str) -> SSlibKey:
    """A public key as another tool has it, which knows it by the same identifier."""
    return SSlibKey.from_crypto(load_pem_public_key(public.read_bytes()), keyid)


def test_another_tool_finds_a_signature_right_and_one_of_other_content_wrong(keys: Pair, tmp_path: Path) -> None:
    signer = Signer(keys.private)
    theirs = OthersEnvelope.from_dict(json.loads(json.dumps(signer.sign(PAYLOAD).document)))
    key = others_key(keys.public, signer.keyid)
    assert (theirs.payload, theirs.payload_type) == (PAYLOAD, "application/vnd.in-toto+json")
    assert list(theirs.verify([key], 1)) == [signer.keyid]
    with pytest.raises(VerificationError):
        theirs.verify([others_key(pair(tmp_path, "other").public, signer.keyid)], 1)
    theirs.payload += b" "
    with pytest.raises(VerificationError):
        theirs.verify([key], 1)


def test_what_one_of_several_keys_has_signed_is_trusted(keys: Pair, tmp_path: Path) -> None:
    others = [pair(tmp_path, f"other{number}") for number in range(3)]
    ring = tmp_path / "ring.pem"
    ring.write_bytes(b"# of now, and of before\n" + b"".join(each.public.read_bytes() for each in (*others, keys)))
    trusted = TrustedKeys(ring)
    assert len(trusted.keyids) == 4
    for each in (*others, keys):
        trusted.check(Signer(each.private).sign(PAYLOAD), "here")
    both = signing.Envelope(
        PAYLOAD,
        {
            **Signer(pair(tmp_path, "strange").private).sign(PAYLOAD).signatures,
            **Signer(keys.private).sign(PAYLOAD).signatures,
        },
    )
    trusted.check(both, "here")


def refusal(trusted: TrustedKeys, envelope: signing.Envelope | None) -> str:
    with pytest.raises(SignatureError) as error:
        trusted.check(envelope, "records/a.json")
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("records/a.json: ")
    assert message.endswith(f", and {trusted.path} requires a signature; export where that key is, with --sign")
    return message.removeprefix("records/a.json: ").partition(",")[0]


def test_what_is_not_signed_or_by_others_is_refused(keys: Pair, tmp_path: Path) -> None:
    trusted, other = TrustedKeys(keys.public), Signer(pair(tmp_path, "other").private)
    signed = Signer(keys.private).sign(PAYLOAD)
    (keyid,) = trusted.keyids
    assert refusal(trusted, None) == "is not signed"
    assert refusal(trusted, signing.Envelope(PAYLOAD, {})) == "is signed by nobody alone"
    assert refusal(trusted, other.sign(PAYLOAD)) == f"is signed by {other.keyid[:16]} alone"
    changed = signed._replace(payload=PAYLOAD + b" ")
    assert refusal(trusted, changed) == "has a signature of other content"
    # Another's signature in this one's name.
    (signature,) = other.sign(PAYLOAD).signatures.values()
    assert refusal(trusted, signing.Envelope(PAYLOAD, {keyid: signature})) == "has a signature of other content"
    for wrong in (b"", b"\0" * 64, signed.signatures[keyid][:-1], signed.signatures[keyid] + b"\0"):
        assert refusal(trusted, signing.Envelope(PAYLOAD, {keyid: wrong})) == "has a signature of other content"


@given(st.binary(max_size=100))
def test_an_envelope_comes_back_from_its_document(payload: bytes) -> None:
    envelope = signing.Envelope(payload, {"a": b"\0" * 64, "b": payload})
    assert signing.is_envelope(envelope.document)
    assert signing.Envelope.parse(json.loads(json.dumps(envelope.document))) == envelope


@pytest.mark.parametrize(
    "changes",
    [
        {"payloadType": "text/plain"},
        {"payload": "=="},
        {"payload": "YQ="},
        {"payload": "YR=="},  # is read as "YQ==", which would be written
        {"payload": "YQ==\n"},
        {"payload": 5},
        {"signatures": [{"keyid": "a"}]},
        {"signatures": [5]},
        {"signatures": None},
        {"signatures": [{"keyid": "a", "sig": "é"}]},
    ],
    ids=str,
)
def test_what_is_no_envelope_is_none(changes: dict[str, Any]) -> None:
    document = {**signing.Envelope(b"a", {"a": b"b"}).document, **changes}
    with pytest.raises((LookupError, TypeError, ValueError)):
        signing.Envelope.parse(document)


def private(key: Any, *, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def public(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


KEY: Final = Ed25519PrivateKey.generate()
NO_KEYS: Final[dict[str, bytes]] = {
    "empty": b"",
    "garbage": b"\x00\xff" * 100,
    "of another kind": private(ec_key(SECP256R1())) + public(ec_key(SECP256R1())),
    "cut short": private(KEY)[:60] + public(KEY)[:60],
    "damaged": private(KEY).replace(b"MC4C", b"MC4D") + public(KEY).replace(b"MCow", b"MCox"),
    "of OpenSSH": bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())),
}


@pytest.mark.parametrize("kind", NO_KEYS)
@pytest.mark.parametrize("reader", [Signer, TrustedKeys])
def test_a_file_without_a_key_is_refused_in_one_line(
    kind: str, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(NO_KEYS[kind])
    with pytest.raises(SelectionError) as error:
        reader(path)
    message = str(error.value)
    assert message.startswith(f"{path}: is not an ed25519 key in PEM (")
    assert "openssl" in message
    assert len(message.splitlines()) == 1
    assert base64.b64encode(KEY.private_bytes_raw()).decode() not in message


def test_the_wrong_half_an_encrypted_key_and_no_file_are_refused(keys: Pair, tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    locked.write_bytes(private(KEY, password=b"secret"))
    for read, path, reason in (
        (Signer, keys.public, "is not an ed25519 key in PEM ("),
        (TrustedKeys, keys.private, "is not an ed25519 key in PEM (no PUBLIC KEY in it); make one of the private key"),
        (Signer, locked, "is not an ed25519 key in PEM (Password was not given"),
        (Signer, tmp_path / "none", "cannot be read (No such file or directory); name a file with a key"),
        (TrustedKeys, tmp_path, "cannot be read (Is a directory); name a file with a key"),
    ):
        with pytest.raises(SelectionError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: {reason}")


def test_one_key_of_another_kind_among_others_is_refused(keys: Pair, tmp_path: Path) -> None:
    ring = tmp_path / "ring.pem"
    ring.write_bytes(keys.public.read_bytes() + public(ec_key(SECP256R1())))
    with pytest.raises(SelectionError, match="a key of another kind"):
        TrustedKeys(ring)


WITHOUT = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from cosyjit.errors import SelectionError
from cosyjit.store.signing import Signer, TrustedKeys
for read in (Signer, TrustedKeys):
    try:
        read(Path("/key.pem"))
    except SelectionError as error:
        print(error)
"""


def test_who_has_no_cryptography_is_told_what_to_install() -> None:
    with start(WITHOUT) as process:
        out, err = process.communicate(timeout=600)
    assert (out, err) == ("/key.pem: needs a package that is missing; install cosyjit[signing]\n" * 2, "")


def test_a_store_that_would_not_read_what_it_signs_is_refused(keys: Pair, tmp_path: Path) -> None:
    other = pair(tmp_path, "other")
    Store(tmp_path, sign=keys.private, require=keys.public)
    with pytest.raises(SelectionError) as error:
        Store(tmp_path, sign=keys.private, require=other.public)
    assert str(error.value) == (
        f"{keys.private}: is not the private half of a key in {other.public}; add its public half there"
    )


def test_a_store_that_is_sent_elsewhere_takes_the_names_of_its_keys_along_and_no_key(
    keys: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Store(tmp_path, sign=Path(keys.private.name), require=keys.public))
    monkeypatch.chdir("/")
    back = pickle.loads(sent)
    assert back.signer.keyid == back.trusted.keyids[0]
    for line in keys.private.read_text().splitlines()[1:-1]:
        assert line.encode() not in sent
        assert base64.b64decode(line)[-32:] not in sent
