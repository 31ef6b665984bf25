"""Ed25519 signatures (RFC 8032) over `bundle.json`, and which keys are trusted; it alone knows `cryptography`.

Keys are PEM files, as OpenSSL writes them: PKCS #8 for the private one, SubjectPublicKeyInfo for the public one.
Trusted are the public keys in `$EDGE_HOME/trusted_keys`. Knows nothing of what a manifest says.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BundleError, MissingExtraError, SignatureError
from .canonical import canonical_json, parse_canonical

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TRUSTED_KEYS = "trusted_keys"
"""The folder under EDGE_HOME."""
MAX_SIGNATURE = 1_000  # bytes of `signature.json`
_PURPOSE = b"edge-sdk bundle 1\n"  # so that what is signed here means nothing elsewhere
_MAX_KEY = 10_000
_FORM = {
    "algorithm": re.compile("ed25519"),
    "key": re.compile("[0-9a-f]{64}"),
    "signature": re.compile("[0-9a-f]{128}"),
}

State = Literal["unsigned", "unknown key", "trusted"]


@dataclass(frozen=True, slots=True)
class Signed:
    """Whether a manifest is signed, and by whom; a signature that is wrong is an error and never gets here.

    `key` is the first half of the sha256 of the public key, hexadecimal, and `name` the trusted file that holds it.
    """

    state: State = "unsigned"
    key: str = ""
    name: str = ""

    def __str__(self) -> str:
        if self.state == "unsigned":
            return "not signed"
        by = f"key {self.key[:16]}"
        return f"signed by {self.name} ({by})" if self.state == "trusted" else f"signed by an unknown {by}"


def sign(manifest: bytes, private_key: Path) -> bytes:
    """`signature.json` for the bytes of a manifest. The same key and manifest give the same bytes.

    Raises `SignatureError` for a file that holds no Ed25519 private key, and `MissingExtraError`.
    """
    key = _read_private(private_key)
    public = key.public_key().public_bytes_raw()
    signature = key.sign(_PURPOSE + manifest)
    return canonical_json({"algorithm": "ed25519", "key": public.hex(), "signature": signature.hex()})


def check_signature(manifest: bytes, signature: bytes | None, trusted: Mapping[bytes, str]) -> Signed:
    """Who signed a manifest; `trusted` are public keys with their names, `signature` is `signature.json` or None.

    Raises `SignatureError` where the signature is not one of these bytes, and `MissingExtraError`.
    """
    if signature is None:
        return Signed()
    public, proof = _parse(signature)
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(proof, _PURPOSE + manifest)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            "the signature is invalid: it was not made for this manifest by the key that it names",
            hint="the bundle was changed after it was signed; get it again from whoever made it",
        ) from error
    name = trusted.get(public)
    return Signed("unknown key" if name is None else "trusted", _key_id(public), name or "")


def require_trusted(signed: Signed) -> None:
    """Raise `SignatureError` unless a trusted key has signed."""
    if signed.state != "trusted":
        raise SignatureError(
            f"a signature by a trusted key is required, and the bundle is {signed}",
            hint=f"put the maker's public key into $EDGE_HOME/{TRUSTED_KEYS}",
        )


def trusted_keys(home: Path, more: Sequence[Path] = ()) -> dict[bytes, str]:
    """The public keys of `$EDGE_HOME/trusted_keys/*.pub` and of the files `more`, each with its file's name.

    Raises `SignatureError` for a file that holds no Ed25519 public key, `MissingExtraError` where there are any.
    """
    found = [*sorted((home / TRUSTED_KEYS).glob("*.pub")), *more]
    return {_read_public(path).public_bytes_raw(): path.stem for path in found}


def make_keys(private_key: Path) -> tuple[Path, str]:
    """Write a new private key to a file that only its owner may read, and the public one beside it as `.pub`.

    Returns the public file and what `Signed.key` says of this key. Never overwrites. Raises `BundleError` and
    `MissingExtraError`.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    open_text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    public_key = private_key.with_name(private_key.name + ".pub")
    try:
        if public_key.exists():
            raise FileExistsError(17, "there is such a file", str(public_key))
        _write_new(private_key, secret, 0o600)
        _write_new(public_key, open_text, 0o644)
    except OSError as error:
        path = error.filename or private_key
        raise BundleError(
            f"the key cannot be written to {path}: {error.strerror}", hint="name another file"
        ) from error
    return public_key, _key_id(key.public_key().public_bytes_raw())


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _parse(data: bytes) -> tuple[bytes, bytes]:
    """Public key and signature of `signature.json`."""
    try:
        values = parse_canonical(data)
    except ValueError as error:
        raise SignatureError(f"the signature is invalid: {error}") from error
    if not isinstance(values, dict) or values.keys() != _FORM.keys():
        raise SignatureError(f"the signature is invalid: it is not {', '.join(_FORM)}")
    for name, form in _FORM.items():
        if not isinstance(values[name], str) or not form.fullmatch(values[name]):
            raise SignatureError(f"the signature is invalid: {name} is {str(values[name])[:40]!r}")
    return bytes.fromhex(values["key"]), bytes.fromhex(values["signature"])


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:32]


# --- PEM --------------------------------------------------------------------------------------------


def _read_private(path: Path) -> Ed25519PrivateKey:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as error:  # TypeError: it has a passphrase
        reason = "it has a passphrase" if isinstance(error, TypeError) else "it is not PEM"
        raise SignatureError(f"{path} is no private key: {reason}", hint="see `edge bundle keygen`") from error
    except UnsupportedAlgorithm as error:
        raise SignatureError(f"{path} is a key of another kind", hint="see `edge bundle keygen`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} is not an Ed25519 key", hint="see `edge bundle keygen`")
    return key


def _read_public(path: Path) -> Ed25519PublicKey:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} is no public key in PEM", hint="see `edge bundle keygen`") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path} is not an Ed25519 key", hint="see `edge bundle keygen`")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY)
    except OSError as error:
        raise SignatureError(f"the key {path} cannot be read: {error.strerror}") from error


def _need_cryptography() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("checking or making a signature", "bundle") from error
