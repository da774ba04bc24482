use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::{Access, Caller, Right, access::Credential};

fn parse(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse(Path::new("policy.toml"), text)
}

fn certified(name: &str) -> Arc<Certified> {
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let caller = Caller::with_certificate(None, certificate.der());
    Arc::clone(caller.certified().unwrap())
}

fn access(policy: &Policy, name: &str) -> Option<Access> {
    let certified = certified(name);
    let rules = policy.of_certificate(&certified)?;
    let credential = Credential::Certificate(certified);
    Some(Access::by(Arc::new(rules), credential, None))
}

#[test]
fn the_closest_name_counts() {
    let policy = parse(
        r#"
        [[identity]]
        certificate = "gpu-*"
        own_node = true
        rights = [{ namespace = "team/*", allow = ["read", "write", "claim"] }]
        [[identity]]
        certificate = "gpu-old-*"
        [[identity]]
        certificate = "gpu-old-1"
        name = "the old one"
        node = "n1"
        [[identity.rights]]
        namespace = "*"
        allow = ["read"]
        "#,
    )
    .unwrap();
    let gpu = access(&policy, "gpu-7").unwrap();
    assert!(gpu.may_be("gpu-7") && !gpu.may_be("gpu-8") && gpu.name() == Some("gpu-7"));
    assert!(gpu.may(Right::Claim, "team/a") && !gpu.may(Right::Admin, "team/a"));
    let old = access(&policy, "gpu-old-2").unwrap();
    assert!(!old.sees("team/a") && !old.may_be("gpu-old-2"));
    let one = access(&policy, "gpu-old-1").unwrap();
    assert!(one.may_be("n1") && one.may(Right::Read, "any") && one.name() == Some("the old one"));
    assert!(access(&policy, "cpu-1").is_none());
    assert_eq!(policy.identities(), 3);
}

#[test]
fn tokens_are_known_by_their_hash() {
    let hash = TokenHash::of(b"0123456789abcdef");
    let text = format!("[[identity]]\nname = \"router\"\ntoken_sha256 = \"{hash}\"");
    let policy = parse(&text).unwrap();
    assert_eq!(policy.of_token(hash).unwrap().name, "router");
    assert!(policy.of_token(TokenHash::of(b"another")).is_none());
}

#[test]
fn what_makes_no_sense_is_named() {
    let fault = |text: &str| match parse(text).unwrap_err() {
        PolicyError::Identity { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let hash = "0".repeat(64);
    assert_eq!(fault("[[identity]]\nname = \"x\""), Fault::Nobody);
    assert_eq!(
        fault(&format!("[[identity]]\ntoken_sha256 = \"{hash}\"")),
        Fault::NoName
    );
    let own = format!("[[identity]]\nname = \"x\"\ntoken_sha256 = \"{hash}\"\nown_node = true");
    assert_eq!(fault(&own), Fault::OwnNode);
    let secret = "[[identity]]\nname = \"x\"\ntoken_sha256 = \"the token itself\"";
    assert_eq!(fault(secret), Fault::TokenHash);
    let both = "[[identity]]\ncertificate = \"x\"\nown_node = true\nnode = \"y\"";
    assert_eq!(fault(both), Fault::TwoNodes);
    assert_eq!(fault("[[identity]]\ncertificate = \"a*b\""), Fault::Pattern);
    let twice = "[[identity]]\ncertificate = \"a\"\n[[identity]]\ncertificate = \"a\"";
    assert_eq!(fault(twice), Fault::Twice);
    let error = parse("[[identity]]\ncertificate = \"a\"\nrigths = []").unwrap_err();
    assert!(error.to_string().contains("policy.toml") && error.to_string().contains("rigths"));
    assert!(!error.to_string().is_empty() && parse("").unwrap().identities() == 0);
}
