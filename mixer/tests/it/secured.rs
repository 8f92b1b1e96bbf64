//! Who may be at the other end of `mcps://`: Galley, or whom the flags name; a certificate of the mesh is not enough.

use std::path::Path;

use clap::Parser as _;
use mixer::args::{Action, Command};
use proto_component::tls::{ClientAuth, Pem, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls_pki_types::ServerName;

type Issuer = CertifiedIssuer<'static, KeyPair>;

const GALLEY: &str = "spiffe://mesh.test/ns/control/sa/istio-galley-service-account";
const OTHER: &str = "spiffe://mesh.test/ns/default/sa/bookinfo-reviews";

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "mesh");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(authority: &Issuer, identity: &str) -> Pem {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["galley.test".to_owned()]).unwrap();
    let uri = SanType::URI(identity.try_into().unwrap());
    params.subject_alt_names.push(uri);
    let certificate = params.signed_by(&key, authority).unwrap();
    Pem {
        chain: certificate.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
        roots: authority.pem().into_bytes(),
        ..Pem::default()
    }
}

/// Whether a Mixer with these flags takes the server for its source of configuration.
async fn is_taken(folder: &Path, server: &Pem, flags: &[&str]) -> bool {
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
    let files = [
        file("certFile", "chain"),
        file("keyFile", "key"),
        file("caCertFile", "roots"),
    ];
    let fixed = ["mixs", "server", "--configStoreURL=mcps://galley.test:9901"];
    let arguments = fixed.into_iter().chain(files.iter().map(String::as_str));
    let Action::Server(args) = Command::parse_from(arguments.chain(flags.iter().copied())).action
    else {
        panic!("not a server");
    };
    let connector = args.tls.source().unwrap().connector();
    let server = ServerTls::from_pem(server, ClientAuth::Required, &["h2"]).unwrap();
    let (here, there) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("galley.test").unwrap();
    let (accepted, connected) = tokio::join!(
        server.acceptor().accept(there),
        connector.connect(name, here)
    );
    assert_eq!(accepted.is_ok(), connected.is_ok());
    connected.is_ok()
}

#[tokio::test]
async fn only_galley_or_who_is_named_gives_configuration() {
    let authority = authority();
    let own = leaf(
        &authority,
        "spiffe://mesh.test/ns/control/sa/istio-mixer-service-account",
    );
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("chain", &own.chain),
        ("key", &own.key),
        ("roots", &own.roots),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let named = format!("--serverSubjectAltNames={OTHER}");
    for (what, identity, flags, want) in [
        ("Galley", GALLEY, &[][..], true),
        ("another workload", OTHER, &[], false),
        (
            "Galley of another namespace",
            &GALLEY.replace("control", "default"),
            &[],
            false,
        ),
        (
            "Galley of another mesh",
            &GALLEY.replace("mesh.test", "evil.test"),
            &[],
            false,
        ),
        ("who is named", OTHER, &[named.as_str()], true),
        ("not who is named", GALLEY, &[named.as_str()], false),
        (
            "the name",
            OTHER,
            &["--serverSubjectAltNames=galley.test"],
            true,
        ),
    ] {
        let server = leaf(&authority, identity);
        assert_eq!(
            is_taken(folder.path(), &server, flags).await,
            want,
            "{what}"
        );
    }
    let stranger = leaf(&self::authority(), GALLEY);
    assert!(
        !is_taken(folder.path(), &stranger, &[]).await,
        "another root"
    );
}
