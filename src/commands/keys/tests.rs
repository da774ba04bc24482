use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use kvferry_security::{
    Policy,
    tls::{ServerTls, TlsFiles},
};

use super::*;

fn keys(dir: &Path, action: KeysAction, force: bool) -> Result<Done, KeysError> {
    run(&KeysArgs {
        action,
        dir: dir.to_owned(),
        force,
    })
}

fn cert(name: &str) -> KeysAction {
    KeysAction::Cert {
        name: name.to_owned(),
        dns: vec!["node.example".to_owned()],
        ip: vec!["10.0.0.7".parse().unwrap()],
        days: 1,
    }
}

fn authority() -> KeysAction {
    KeysAction::Ca {
        name: "test CA".to_owned(),
        days: 2,
    }
}

#[test]
fn what_is_made_fits_together_and_secrets_are_ours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("keys");
    let no_ca = keys(&dir, cert("a"), false).unwrap_err();
    assert!(matches!(no_ca, KeysError::NoCa { .. }), "{no_ca}");
    keys(&dir, authority(), false).unwrap();
    keys(&dir, cert("node-7"), false).unwrap();
    let file = |name: &str| Some(dir.join(name));
    let files = TlsFiles {
        cert: file("node-7.pem"),
        key: file("node-7.key"),
        ca: file("ca.pem"),
    };
    assert!(ServerTls::open(&files).unwrap().is_some());
    assert_eq!(
        Policy::read(&dir.join("policy.toml")).unwrap().identities(),
        2
    );
    for secret in ["ca.key", "node-7.key"] {
        let mode = fs::metadata(dir.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
}

#[test]
fn what_is_there_is_replaced_by_force_only() {
    let dir = tempfile::tempdir().unwrap();
    keys(dir.path(), authority(), false).unwrap();
    let again = keys(dir.path(), authority(), false).unwrap_err();
    assert!(matches!(again, KeysError::Exists { .. }), "{again}");
    fs::write(dir.path().join("policy.toml"), "# ours\n").unwrap();
    keys(dir.path(), authority(), true).unwrap();
    let policy = fs::read_to_string(dir.path().join("policy.toml")).unwrap();
    assert_eq!(policy, "# ours\n", "a policy is never replaced");
    let token = |name: &str| KeysAction::Token {
        name: name.to_owned(),
    };
    keys(dir.path(), token("router"), false).unwrap();
    kvferry_security::TokenFile::open(&dir.path().join("router.token")).unwrap();
    let outside = keys(dir.path(), token("../x"), false).unwrap_err();
    assert!(matches!(outside, KeysError::Name { .. }), "{outside}");
}
