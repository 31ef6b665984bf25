"""Signatures: made for one manifest by one key, in files that OpenSSL knows, and trusted only where said so."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from edge_sdk.bundle.canonical import canonical_json, parse_canonical
from edge_sdk.bundle.signature import (
    Signed,
    check_signature,
    make_keys,
    require_trusted,
    sign,
    trusted_keys,
)
from edge_sdk.errors import BundleError, MissingExtraError, SignatureError

pytest.importorskip("cryptography")
MANIFEST = b'{"name":"demo"}'
# RFC 8032, section 7.1, test 2: secret key, public key.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "maker")
    return tmp_path / "maker"


def test_a_trusted_key_an_unknown_one_and_none(key: Path, tmp_path: Path) -> None:
    signature = sign(MANIFEST, key)
    unknown = check_signature(MANIFEST, signature, {})
    trusted = check_signature(MANIFEST, signature, trusted_keys(tmp_path, [key.with_name("maker.pub")]))
    none = check_signature(MANIFEST, None, {})
    assert [each.state for each in (none, unknown, trusted)] == ["unsigned", "unknown key", "trusted"]
    assert unknown.key == trusted.key
    assert str(trusted) == f"signed by maker (key {trusted.key[:16]})"
    require_trusted(trusted)
    for each in (none, unknown):
        with pytest.raises(SignatureError, match="trusted key is required") as caught:
            require_trusted(each)
        assert "--" not in caught.value.hint  # not every command that requires one has an option for it


def test_keys_in_the_home_are_trusted(key: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert trusted_keys(home) == {}
    (home / "trusted_keys").mkdir(parents=True)
    (home / "trusted_keys" / "anna.pub").write_bytes(key.with_name("maker.pub").read_bytes())
    (home / "trusted_keys" / "notes.txt").write_text("not a key, and not looked at")
    assert check_signature(MANIFEST, sign(MANIFEST, key), trusted_keys(home)).name == "anna"


def test_the_same_key_and_manifest_give_the_same_bytes(key: Path) -> None:
    assert sign(MANIFEST, key) == sign(MANIFEST, key)


def test_every_flipped_bit_of_signature_and_manifest_is_refused(key: Path) -> None:
    signature = sign(MANIFEST, key)
    for at in range(len(signature)):
        changed = bytearray(signature)
        changed[at] ^= 1 << at % 8
        with pytest.raises(SignatureError, match="the signature is invalid"):
            check_signature(MANIFEST, bytes(changed), {})
    for at in range(len(MANIFEST)):
        other = bytearray(MANIFEST)
        other[at] ^= 1 << at % 8
        with pytest.raises(SignatureError, match="the signature is invalid"):
            check_signature(bytes(other), signature, {})


def test_a_signature_of_the_bare_manifest_is_not_one_of_a_bundle(key: Path) -> None:
    """What the key signed elsewhere, for another purpose, cannot be taken for a bundle's signature."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    native = load_pem_private_key(key.read_bytes(), None)
    values = parse_canonical(sign(MANIFEST, key))
    values["signature"] = native.sign(MANIFEST).hex()  # type: ignore[union-attr, call-arg]
    with pytest.raises(SignatureError, match="invalid"):
        check_signature(MANIFEST, canonical_json(values), {})


def test_another_half_of_the_group_order_is_refused(key: Path) -> None:
    """S and S + L would both satisfy the equation; RFC 8032 takes the smaller only."""
    values = parse_canonical(sign(MANIFEST, key))
    proof = bytes.fromhex(values["signature"])
    order = 2**252 + 27742317777372353535851937790883648493
    larger = int.from_bytes(proof[32:], "little") + order
    values["signature"] = (proof[:32] + larger.to_bytes(32, "little")).hex()
    with pytest.raises(SignatureError, match="invalid"):
        check_signature(MANIFEST, canonical_json(values), {})


def test_a_key_of_the_rfc_gives_its_public_key(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = tmp_path / "rfc"
    path.write_bytes(
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET)).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    assert parse_canonical(sign(b"", path))["key"] == PUBLIC


def test_new_keys_are_for_their_owner_and_never_overwrite(tmp_path: Path) -> None:
    public, name = make_keys(tmp_path / "key")
    assert public == tmp_path / "key.pub"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")
    assert len(name) == 32
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(BundleError, match="key cannot be written"):
        make_keys(tmp_path / "key")
    (tmp_path / "other.pub").write_text("mine")
    with pytest.raises(BundleError, match=r"other\.pub"):
        make_keys(tmp_path / "other")
    assert (tmp_path / "key").read_bytes() == before
    assert not (tmp_path / "other").exists()
    with pytest.raises(BundleError, match="No such file"):
        make_keys(tmp_path / "nowhere" / "key")


def other_kinds() -> dict[str, tuple[bytes, bytes]]:
    """Private and public files that are no Ed25519 keys."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    curve = ec.generate_private_key(ec.SECP256R1())
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        pem, pkcs8, serialization.BestAvailableEncryption(b"secret")
    )
    return {
        "curve": (
            curve.private_bytes(pem, pkcs8, serialization.NoEncryption()),
            curve.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        ),
        "locked": (locked, locked),
        "text": (b"hello", b"hello"),
        "empty": (b"", b""),
        "cut": (b"-----BEGIN PRIVATE KEY-----\nMC4", b"-----BEGIN PUBLIC KEY-----\nMCow"),
    }


@pytest.mark.parametrize("kind", ["curve", "locked", "text", "empty", "cut"])
def test_files_that_hold_no_key_are_one_line(tmp_path: Path, kind: str) -> None:
    private, public = other_kinds()[kind]
    (tmp_path / "private").write_bytes(private)
    (tmp_path / "public").write_bytes(public)
    for action in (
        lambda: sign(MANIFEST, tmp_path / "private"),
        lambda: trusted_keys(tmp_path, [tmp_path / "public"]),
    ):
        with pytest.raises(SignatureError, match=r"edge bundle keygen") as caught:
            action()
        assert "\n" not in str(caught.value)
    with pytest.raises(SignatureError, match="cannot be read"):
        sign(MANIFEST, tmp_path / "none")


def test_a_public_key_does_not_sign(key: Path) -> None:
    with pytest.raises(SignatureError, match="no private key"):
        sign(MANIFEST, key.with_name("maker.pub"))
    with pytest.raises(SignatureError, match="no public key"):
        trusted_keys(key.parent, [key])


def test_without_the_package_the_error_names_the_command(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = sign(MANIFEST, key)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    for action in (lambda: sign(MANIFEST, key), lambda: check_signature(MANIFEST, signature, {})):
        with pytest.raises(MissingExtraError, match=r"pip install 'edge-sdk\[bundle\]'"):
            action()
    assert check_signature(MANIFEST, None, {}) == Signed()  # unsigned ones need no package
