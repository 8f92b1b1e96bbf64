#!/usr/bin/env python3
"""Makes the certificates of the parity cases anew (needs the package `cryptography`).

They are the cases' own and good for nothing else. Recordings hold their hashes: run `parity record` afterwards.
"""
import datetime
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

os.chdir(os.path.dirname(os.path.abspath(__file__)))
FROM, TO = datetime.datetime(2020, 1, 1), datetime.datetime(2120, 1, 1)


def name(common):
    return x509.Name([
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Parity"),
        x509.NameAttribute(NameOID.COMMON_NAME, common),
    ])


def write(file, certificate, key):
    with open(f"{file}.pem", "wb") as out:
        out.write(certificate.public_bytes(serialization.Encoding.PEM))
    if key:
        with open(f"{file}.key", "wb") as out:
            out.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                        serialization.NoEncryption()))


def build(common, issuer, public, signer, serial, extensions):
    builder = (x509.CertificateBuilder().subject_name(name(common)).issuer_name(name(issuer)).public_key(public)
               .serial_number(serial).not_valid_before(FROM).not_valid_after(TO))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def authority(file, common, serial):
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = build(common, common, key.public_key(), key, serial,
                        [(x509.BasicConstraints(True, None), True), (usage, True)])
    write(file, certificate, None)
    return common, key


def leaf(file, issuer, common, names, serial):
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = build(common, issuer[0], key.public_key(), issuer[1], serial,
                        [(x509.BasicConstraints(False, None), True), (usage, False),
                         (x509.SubjectAlternativeName(names), False)])
    write(file, certificate, key)


dns, uri = x509.DNSName, x509.UniformResourceIdentifier
ca, other = authority("ca", "Parity CA", 1), authority("other-ca", "Other CA", 2)
leaf("server", ca, "server.parity.test", [dns("server.parity.test"), dns("*.wild.parity.test")], 0x1001)
leaf("second", ca, "second.parity.test", [dns("second.parity.test")], 0x1002)
leaf("client", ca, "client one", [uri("spiffe://parity.test/ns/default/sa/client"), dns("client.parity.test")], 0x1003)
leaf("bare", ca, "bare client", [dns("bare.parity.test")], 0x1004)
leaf("stranger", other, "stranger", [uri("spiffe://other.test/ns/default/sa/stranger")], 0x1005)
