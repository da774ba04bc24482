//! `kvferry keys`: a small CA, certificates and tokens, so that a cluster is secured in a few commands.

mod certificates;
mod store;
mod ticket;

use std::{
    io::{self, Read},
    net::Ipv4Addr,
    path::Path,
};

use kvferry_security::TokenHash;

use crate::{
    cli::{KeysAction, KeysArgs},
    failure::Done,
    output::{self, OutputError},
};
use certificates::{Authority, Subject};
use store::{Kind, Store};
pub(crate) use ticket::TicketKeyError;

/// A policy to begin with: every certificate is a node's, but for the operator's.
const POLICY: &str = "\
# Who may do what. Read again when it changes; docs/security.md tells of every key.

# Every certificate of the CA is a node's: it speaks for the node of its own name.
[[identity]]
certificate = \"*\"
own_node = true
rights = [{ namespace = \"*\", allow = [\"read\", \"write\", \"claim\"] }]

# The operator's: kvferry keys cert admin
[[identity]]
certificate = \"admin\"
rights = [{ namespace = \"*\", allow = [\"read\", \"write\", \"claim\", \"admin\"] }]
";
/// 256 bits: nobody guesses them.
const TOKEN_BYTES: usize = 32;

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// A name that no file and no certificate could have.
    #[error(
        "refused: {name:?} can be no name here: letters, digits, '-', '_' and '.' can, not at the beginning a '.'"
    )]
    Name { name: String },
    /// What is there is kept.
    #[error(
        "{path} is there already: --force replaces it, and whoever trusts the old one must get the new one"
    )]
    Exists { path: String },
    /// A file cannot be written or read.
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    /// There is no CA yet.
    #[error(
        "{path} cannot be read ({source}): make a CA first with `kvferry keys ca`, or give its folder (--dir)"
    )]
    NoCa { path: String, source: io::Error },
    /// A certificate cannot be made or read.
    #[error("{what}: {source}")]
    Certificate { what: String, source: rcgen::Error },
    /// The CA's files are of no use.
    #[error("{path} is no certificate of a CA made by `kvferry keys ca`")]
    NotOurs { path: String },
    /// The system gives no randomness.
    #[error("no random numbers: {0}")]
    Random(io::Error),
    /// No key to sign tickets with.
    #[error(transparent)]
    Ticket(#[from] TicketKeyError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Makes what is asked for.
pub(crate) fn run(args: &KeysArgs) -> Result<Done, KeysError> {
    let store = || Store::open(&args.dir, args.force);
    match &args.action {
        KeysAction::Ca { name, days } => ca(&store()?, name, *days),
        KeysAction::Cert {
            name,
            dns,
            ip,
            days,
        } => {
            let subject = Subject {
                name,
                dns,
                ip,
                days: *days,
            };
            certificate(&store()?, &subject)
        }
        KeysAction::Token { name } => token(&store()?, name),
        // A file of its own, wherever it is: coordinators have it, and nobody else.
        KeysAction::Ticket { file, rotate } => ticket_key(file, *rotate),
    }?;
    Ok(Done::All)
}

/// For processes of one run on this host: a CA whose key nobody keeps, and a certificate for each of these names and for
/// loopback, valid for a day: `ca.pem`, and NAME.pem and NAME.key for each.
pub(crate) fn throw_away(dir: &Path, names: &[&str]) -> Result<(), KeysError> {
    let store = Store::open(dir, false)?;
    let authority = Authority::make("throw-away", 1)?;
    store.write("ca.pem", &authority.certificate, Kind::Public)?;
    for name in names {
        let (pem, key) = (store::file(name, "pem")?, store::file(name, "key")?);
        let made = authority.issue(&Subject {
            name,
            dns: &[],
            ip: &[Ipv4Addr::LOCALHOST.into()],
            days: 1,
        })?;
        store.write(&key, &made.key, Kind::Secret)?;
        store.write(&pem, &made.certificate, Kind::Public)?;
    }
    Ok(())
}

fn ca(store: &Store, name: &str, days: u32) -> Result<(), KeysError> {
    // Both or none: a CA whose key is lost is of no use.
    store.must_be_free(&["ca.pem", "ca.key"])?;
    let authority = Authority::make(name, days)?;
    let key = store.write("ca.key", &authority.key, Kind::Secret)?;
    let certificate = store.write("ca.pem", &authority.certificate, Kind::Public)?;
    output::line(&format!(
        "{certificate}  to be given to every coordinator, agent and tool: --tls-ca\n\
         {key}  stays here: who has it can be anybody"
    ))?;
    if store.has("policy.toml") {
        return Ok(());
    }
    let policy = store.write("policy.toml", POLICY, Kind::Public)?;
    output::line(&format!("{policy}  for coordinators: --policy"))?;
    Ok(())
}

fn ticket_key(file: &Path, rotate: bool) -> Result<(), KeysError> {
    ticket::make(file, rotate)?;
    let signs = match rotate {
        false => "who has it lets anybody in",
        true => "it has a new key, and the one that signed until now",
    };
    let path = file.display();
    output::line(&format!(
        "{path}  for every coordinator, and nobody else: --ticket-key; {signs}"
    ))?;
    Ok(())
}

fn certificate(store: &Store, subject: &Subject<'_>) -> Result<(), KeysError> {
    let (pem, key) = (
        store::file(subject.name, "pem")?,
        store::file(subject.name, "key")?,
    );
    store.must_be_free(&[&pem, &key])?;
    let authority = Authority {
        certificate: store.read("ca.pem")?,
        key: store.read("ca.key")?,
    };
    let made = authority.issue(subject)?;
    let key = store.write(&key, &made.key, Kind::Secret)?;
    let pem = store.write(&pem, &made.certificate, Kind::Public)?;
    output::line(&format!(
        "{pem}  --tls-cert, valid for {} days\n{key}  --tls-key",
        subject.days
    ))?;
    Ok(())
}

fn token(store: &Store, name: &str) -> Result<(), KeysError> {
    let file = store::file(name, "token")?;
    store.must_be_free(&[&file])?;
    let mut bytes = [0; TOKEN_BYTES];
    let random = std::fs::File::open("/dev/urandom");
    let filled = random.and_then(|mut random| random.read_exact(&mut bytes));
    filled.map_err(KeysError::Random)?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = store.write(&file, &format!("{token}\n"), Kind::Secret)?;
    let hash = TokenHash::of(token.as_bytes());
    output::line(&format!(
        "# {path}: --token-file. The coordinator's policy takes its hash only:\n\
         [[identity]]\n\
         name = \"{name}\"\n\
         token_sha256 = \"{hash}\"\n\
         rights = [{{ namespace = \"*\", allow = [\"read\"] }}]"
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests;
