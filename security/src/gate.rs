//! The gate: every call of a gRPC port goes through it, and comes out with its [`Access`].

use std::{path::Path, sync::Arc};

use kvferry_observe::{ByLabel, Counter, label};
use kvferry_proto::{Reason, refusal};
use tokio::sync::watch;
use tonic::{Code, Extensions, Status, codegen::http};

use crate::{
    Access, Caller, Policy, PolicyError,
    access::{Credential, Rules},
    audit,
    caller::{Certified, Known},
    reread::{Looked, Reading, Reread},
    token::TokenHash,
};

label! {
    /// Why a call was turned away before it was looked at.
    pub enum TurnedAway("reason") {
        /// Neither a token nor a certificate.
        Nobody = "nobody",
        /// A certificate whose names the policy does not have.
        Certificate = "certificate",
        /// A token that the policy does not have.
        Token = "token",
    }
}

/// Lets everybody in where there is no policy, else those it names.
#[derive(Debug, Default)]
pub struct Gate {
    policy: Option<Watched>,
    turned_away: ByLabel<TurnedAway, Counter>,
}

#[derive(Debug)]
struct Watched {
    file: Reread<Policy, PolicyError>,
    /// The number of the reading in force.
    readings: watch::Sender<u64>,
}

impl Gate {
    /// For everybody.
    #[must_use]
    pub fn open() -> Self {
        Self::default()
    }

    /// For those whom a policy file names.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn with_policy(path: &Path) -> Result<Self, PolicyError> {
        let file = path.to_owned();
        let load = move || Policy::read(&file);
        let file = Reread::open("the policy", vec![path.to_owned()], load)?;
        let policy = Watched {
            file,
            readings: watch::Sender::new(1),
        };
        Ok(Self {
            policy: Some(policy),
            turned_away: ByLabel::default(),
        })
    }

    /// Whether there is a policy.
    #[must_use]
    pub fn has_policy(&self) -> bool {
        self.policy.is_some()
    }

    /// Reads the policy again if it changed; to be called every now and then. Looks at the file once a
    /// second, however often it is called.
    pub fn tick(&self) {
        if let Some(policy) = &self.policy
            && policy.file.look() == Looked::New
        {
            policy.readings.send_replace(policy.file.known().number);
        }
    }

    /// Tells when another policy is in force.
    #[must_use]
    pub fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.policy.as_ref()?.readings.subscribe())
    }

    /// Calls turned away, by why.
    #[must_use]
    pub fn turned_away(&self) -> &ByLabel<TurnedAway, Counter> {
        &self.turned_away
    }

    /// Policy files that were read and are of no use.
    #[must_use]
    pub fn bad_policies(&self) -> u64 {
        let policy = self.policy.as_ref();
        policy.map_or(0, |policy| policy.file.failed.get())
    }

    /// Whether the policy file, as it is now, is of no use: an older reading of it is in force.
    #[must_use]
    pub fn policy_is_bad(&self) -> bool {
        let policy = self.policy.as_ref();
        policy.is_some_and(|policy| policy.file.is_bad())
    }

    /// Finds out who asks, and puts its [`Access`] among the request's extensions. Without a policy
    /// nothing is done, nor allocated.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` where the policy does not know the caller.
    #[allow(clippy::result_large_err)] // tonic's signature
    pub fn admit<B>(&self, request: &mut http::Request<B>) -> Result<(), Status> {
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        let caller = request.extensions().get::<Caller>();
        let from = caller.and_then(Caller::from);
        let certified = caller.and_then(Caller::certified);
        let known = policy.file.known();
        // Whoever shows a token is meant to be known by it.
        let token = request.headers().get(http::header::AUTHORIZATION);
        let rules = match (token, certified) {
            (Some(token), _) => {
                let token = token.as_bytes().strip_prefix(b"Bearer ");
                let hash = token.map(TokenHash::of);
                let rules = hash.and_then(|hash| {
                    let rules = known.value.of_token(hash)?.clone();
                    Some((rules, Credential::Token(hash)))
                });
                rules.ok_or_else(|| {
                    "the token is none that the coordinator's policy file names".to_owned()
                })
            }
            (None, Some(certified)) => of_certificate(&known, certified)
                .map(|rules| (rules, Credential::Certificate(Arc::clone(certified))))
                .ok_or_else(|| {
                    let names = certified.names().join(", ");
                    format!("the coordinator's policy file names no certificate of the name {names}")
                }),
            (None, None) => Err("the coordinator has a policy, and nobody said who asks: give a client certificate (--tls-cert, --tls-key) or a token (--token-file)".to_owned()),
        };
        match rules {
            Ok((rules, credential)) => {
                let access = Access::by(rules, credential, from);
                request.extensions_mut().insert(access);
                Ok(())
            }
            Err(why) => {
                let reason = match (token.is_some(), certified.is_some()) {
                    (true, _) => TurnedAway::Token,
                    (false, true) => TurnedAway::Certificate,
                    (false, false) => TurnedAway::Nobody,
                };
                self.turned_away.of(reason).inc();
                audit::denied("unknown", request.uri().path(), from, &why);
                Err(refusal(Code::Unauthenticated, Reason::Unauthenticated, why))
            }
        }
    }

    /// What the caller of an admitted request may do. Whoever did not come through the gate may
    /// nothing, where there is a policy.
    #[must_use]
    pub fn access(&self, extensions: &Extensions) -> Access {
        match (&self.policy, extensions.get::<Access>()) {
            (None, _) => Access::unrestricted(),
            (Some(_), Some(access)) => access.clone(),
            (Some(_), None) => Access::of("unknown", None, Vec::new()),
        }
    }

    /// Completes when the policy says something else of this caller than it did. Never without a policy.
    pub async fn revoked(&self, access: &Access) {
        let Some(mut changes) = self.changes() else {
            return std::future::pending().await;
        };
        // A policy that came between the request and this is looked at, too.
        while self.still(access) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether the policy in force still says the same of this caller.
    #[must_use]
    pub fn still(&self, access: &Access) -> bool {
        let (Some(policy), Some(rules)) = (&self.policy, access.rules()) else {
            return true;
        };
        let known = policy.file.known();
        let now = match access.credential() {
            Some(Credential::Certificate(certified)) => of_certificate(&known, certified),
            Some(Credential::Token(hash)) => known.value.of_token(*hash).cloned(),
            None => None,
        };
        now.is_some_and(|now| now.nodes == rules.nodes && now.grants == rules.grants)
    }
}

/// Asked of the policy once a connection and reading.
fn of_certificate(policy: &Reading<Policy>, certified: &Arc<Certified>) -> Option<Arc<Rules>> {
    if let Some(known) = &*certified.known.load()
        && known.number == policy.number
    {
        return known.rules.clone();
    }
    let rules = policy.value.of_certificate(certified).map(Arc::new);
    certified.known.store(Some(Arc::new(Known {
        number: policy.number,
        rules: rules.clone(),
    })));
    rules
}
