//! Tickets: who may read what, signed, so that owners need not ask.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kvferry_proto::{
    Incarnation, InvalidMessage, NamespaceName, NodeId, Reason,
    pb::{self, tickets_server},
    refusal,
};
use kvferry_security::{
    Access, Denied, Right,
    ticket::{Issuer, MAX_SCOPES, PublicKey, Scope, Ticket, UnixMillis},
};
use tonic::{Code, Request, Response, Status};

use super::hub::Hub;
use crate::metrics::TicketOutcome;

/// `kvferry.v1.Tickets` with the keys of one file, or none.
#[derive(Debug, Clone)]
pub(crate) struct TicketsService {
    hub: Arc<Hub>,
    issuer: Option<Arc<Issuer>>,
    ttl: Duration,
}

/// What is asked for, in what a caller is told that may not.
const WHAT: &str = "be given a ticket to read";

/// What a ticket is asked for.
struct Asked {
    reader: NodeId,
    reader_key: PublicKey,
    owner: NodeId,
    incarnation: Incarnation,
    /// Empty: all that may be read.
    namespaces: Vec<NamespaceName>,
}

impl TicketsService {
    pub(crate) fn new(hub: Arc<Hub>, issuer: Option<Issuer>, ttl: Duration) -> Self {
        let issuer = issuer.map(Arc::new);
        Self { hub, issuer, ttl }
    }

    pub(crate) fn server(self) -> tickets_server::TicketsServer<Self> {
        tickets_server::TicketsServer::new(self)
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn issue(
        &self,
        access: &Access,
        request: &pb::IssueTicketRequest,
    ) -> Result<pb::IssueTicketResponse, Status> {
        let issuer = self.issuer.as_ref().ok_or_else(|| {
            self.hub.metrics().ticket(TicketOutcome::NoKey);
            Status::failed_precondition(
                "this coordinator signs no tickets: it has no ticket_key. If an owner asks for one, give all \
                 coordinators of the cluster the same key file",
            )
        })?;
        let asked = Asked::parse(request).inspect_err(|_| self.refused(access, "bad request"))?;
        let denied = |_: &Denied| self.hub.metrics().ticket(TicketOutcome::Denied);
        access
            .must_be(asked.reader.as_str(), WHAT)
            .inspect_err(denied)?;
        let scopes = self.scopes(access, &asked.namespaces)?;
        let ticket = Ticket {
            reader: asked.reader,
            reader_key: asked.reader_key,
            owner: asked.owner,
            incarnation: asked.incarnation,
            scopes,
            expires: UnixMillis::now().after(self.ttl),
        };
        let bytes = issuer.issue(self.hub.now(), &ticket).map_err(|too_long| {
            self.refused(access, "too many namespaces");
            refusal(
                Code::ResourceExhausted,
                Reason::BoundReached,
                too_long.to_string(),
            )
        })?;
        self.hub.metrics().ticket(TicketOutcome::Issued);
        tracing::debug!(reader = %ticket.reader, owner = %ticket.owner, scopes = ?ticket.scopes, "ticket issued");
        Ok(pb::IssueTicketResponse {
            ticket: Bytes::from(bytes),
            ttl_ms: u32::try_from(self.ttl.as_millis()).unwrap_or(u32::MAX),
        })
    }

    /// What may be read of what is asked for. Says nothing of which namespaces there are: a right to what is not there
    /// is a right, and none to what is there is none.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn scopes(&self, access: &Access, namespaces: &[NamespaceName]) -> Result<Vec<Scope>, Status> {
        let denied = |text: String| {
            self.refused(access, "no right to read");
            Status::permission_denied(text)
        };
        for name in namespaces {
            let read = access.must(Right::Read, name.as_str(), WHAT);
            read.inspect_err(|_| self.hub.metrics().ticket(TicketOutcome::Denied))?;
        }
        if !namespaces.is_empty() {
            return Ok(namespaces.iter().map(Scope::from).collect());
        }
        let Some(granted) = access.granted(Right::Read) else {
            return Ok(vec![Scope::all()]);
        };
        // A line of a policy that can be no namespace's name gives no right to any.
        let scopes: Vec<Scope> = granted.iter().filter_map(|g| Scope::new(g).ok()).collect();
        match scopes.is_empty() {
            true => Err(denied("this caller may not read anywhere".to_owned())),
            false => Ok(scopes),
        }
    }

    fn refused(&self, access: &Access, why: &'static str) {
        self.hub.metrics().ticket(TicketOutcome::Denied);
        tracing::warn!(caller = access.name(), why, "no ticket was issued");
    }
}

impl Asked {
    fn parse(request: &pb::IssueTicketRequest) -> Result<Self, InvalidMessage> {
        let count = request.namespaces.len();
        if count > MAX_SCOPES {
            return Err(InvalidMessage::OutOfBounds {
                what: "the number of namespaces",
                got: count as u64,
                max: MAX_SCOPES as u64,
            });
        }
        let namespaces = request
            .namespaces
            .iter()
            .map(|name| NamespaceName::new(name));
        Ok(Self {
            reader: NodeId::new(&request.reader)?,
            reader_key: PublicKey::from_bytes(&request.reader_key).ok_or(
                InvalidMessage::Columns {
                    what: "the reader's key",
                    got: request.reader_key.len(),
                    want: kvferry_security::ticket::PUBLIC_KEY_BYTES,
                },
            )?,
            owner: NodeId::new(&request.owner)?,
            incarnation: Incarnation::new(request.incarnation)?,
            namespaces: namespaces.collect::<Result<_, _>>()?,
        })
    }
}

#[tonic::async_trait]
impl tickets_server::Tickets for TicketsService {
    async fn issue_ticket(
        &self,
        request: Request<pb::IssueTicketRequest>,
    ) -> Result<Response<pb::IssueTicketResponse>, Status> {
        let access = self.hub.access(request.extensions());
        self.issue(&access, request.get_ref()).map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use kvferry_security::{
        access::Grant,
        ticket::{KeyRing, Purpose, ReaderKey, SigningKey},
    };

    use super::*;
    use crate::service::hub::tests::hub;

    fn service() -> (TicketsService, KeyRing) {
        let issuer = Issuer::new(SigningKey::from_seed(&[1; 32]).unwrap());
        let ring = KeyRing::new(issuer.public());
        let ttl = Duration::from_secs(60);
        (
            TicketsService::new(Arc::new(hub()), Some(issuer), ttl),
            ring,
        )
    }

    fn request(namespaces: &[&str]) -> pb::IssueTicketRequest {
        let key = ReaderKey::from_seed(&[9; 32]).unwrap();
        pb::IssueTicketRequest {
            reader: "node-7".to_owned(),
            reader_key: Bytes::copy_from_slice(&key.public().0),
            owner: "owner".to_owned(),
            incarnation: 42,
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
        }
    }

    fn tenant() -> Access {
        let grant = |namespace: &str, rights: &[Right]| Grant {
            namespace: namespace.to_owned(),
            rights: rights.to_vec(),
        };
        let grants = vec![
            grant("a/*", &[Right::Read, Right::Write]),
            grant("b/x", &[Right::Write]),
            grant("no name", &[Right::Read]),
        ];
        Access::of("tenant-a", Some("node-7"), grants)
    }

    fn scopes(access: &Access, namespaces: &[&str]) -> Result<Vec<String>, Code> {
        let (service, ring) = service();
        let answer = service.issue(access, &request(namespaces));
        let answer = answer.map_err(|status| status.code())?;
        assert_eq!(answer.ttl_ms, 60_000);
        let owner = NodeId::new("owner").unwrap();
        let incarnation = Incarnation::new(42).unwrap();
        let ticket = ring.verify(UnixMillis::now(), &owner, incarnation, &answer.ticket);
        let scopes = ticket.unwrap().scopes;
        Ok(scopes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_ticket_names_what_its_reader_may_read() {
        let all = Access::unrestricted();
        assert_eq!(scopes(&all, &[]).unwrap(), ["*"]);
        assert_eq!(scopes(&all, &["b/x"]).unwrap(), ["b/x"]);
        assert_eq!(scopes(&tenant(), &[]).unwrap(), ["a/*"]);
        assert_eq!(scopes(&tenant(), &["a/1", "a/2"]).unwrap(), ["a/1", "a/2"]);
    }

    #[test]
    fn nobody_gets_one_for_what_it_may_not_read() {
        let denied = Err(Code::PermissionDenied);
        assert_eq!(scopes(&tenant(), &["b/x"]), denied);
        assert_eq!(scopes(&tenant(), &["a/1", "c"]), denied);
        assert_eq!(
            scopes(&Access::of("nobody", Some("node-7"), Vec::new()), &[]),
            denied
        );
        // In another node's name.
        let grant = Grant {
            namespace: "*".to_owned(),
            rights: vec![Right::Read],
        };
        let other = Access::of("cn-8", Some("node-8"), vec![grant]);
        assert_eq!(scopes(&other, &[]), denied);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (service, _) = service();
        let all = Access::unrestricted();
        let refused = |change: fn(&mut pb::IssueTicketRequest)| {
            let mut request = request(&[]);
            change(&mut request);
            service.issue(&all, &request).unwrap_err().code()
        };
        assert_eq!(refused(|r| r.reader.clear()), Code::InvalidArgument);
        assert_eq!(refused(|r| r.owner = "a b".into()), Code::InvalidArgument);
        assert_eq!(refused(|r| r.incarnation = 0), Code::InvalidArgument);
        assert_eq!(
            refused(|r| r.reader_key.truncate(31)),
            Code::InvalidArgument
        );
        let many = |r: &mut pb::IssueTicketRequest| r.namespaces = vec!["n".into(); 65];
        assert_eq!(refused(many), Code::InvalidArgument);
        let long = |r: &mut pb::IssueTicketRequest| r.namespaces = vec!["n".repeat(256); 60];
        assert_eq!(refused(long), Code::ResourceExhausted);
        let none = TicketsService::new(Arc::new(hub()), None, Duration::from_secs(60));
        let code = none.issue(&all, &request(&[])).unwrap_err().code();
        assert_eq!(code, Code::FailedPrecondition);
    }

    #[test]
    fn the_key_in_it_is_the_readers() {
        let (service, ring) = service();
        let answer = service
            .issue(&Access::unrestricted(), &request(&[]))
            .unwrap();
        let owner = NodeId::new("owner").unwrap();
        let incarnation = Incarnation::new(42).unwrap();
        let now = UnixMillis::now();
        let ticket = ring
            .verify(now, &owner, incarnation, &answer.ticket)
            .unwrap();
        let nonce = kvferry_security::ticket::Nonce([3; 32]);
        let key = ReaderKey::from_seed(&[9; 32]).unwrap();
        let proof = key.prove(Purpose::Data, &nonce, &answer.ticket);
        assert!(ticket.is_proven(Purpose::Data, &nonce, &answer.ticket, &proof));
    }
}
