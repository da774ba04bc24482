//! Each call of a coordinator, by callers who may and who may not.

use kvferry_proto::{
    Reason,
    pb::{
        self, agent_message::Message as Said, coordinator_message::Message as Told,
        watch_message::Message,
    },
};
use kvferry_security::tls::Secured;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::world::{Clients, World, identity, reason};
use crate::{
    cluster::pack,
    engine::{hashes, namespace},
};

const DENIED: (Code, Option<Reason>) = (Code::PermissionDenied, Some(Reason::PermissionDenied));

/// The calls that name a namespace, by what they take; `any`: whatever right.
const CALLS: [(&str, &str); 16] = [
    ("locate", "read"),
    ("watch", "read"),
    ("find_locations", "read"),
    ("list_claims", "read"),
    ("list_sources", "read"),
    ("put_locations", "write"),
    ("remove_locations", "write"),
    ("create_namespace", "write"),
    ("claim", "claim"),
    ("delete_namespace", "admin"),
    ("set_policy", "admin"),
    ("set_copies", "admin"),
    ("want_copies", "admin"),
    ("get_policy", "any"),
    ("describe_copies", "any"),
    ("describe_namespace", "any"),
];

async fn call(clients: &Clients, call: &str, name: &str) -> Result<(), Status> {
    let mut c = clients.clone();
    let name = name.to_owned();
    let hashes = Some(pack(&hashes(0..2)));
    match call {
        "locate" => {
            let request = pb::LocateRequest {
                namespace: name,
                hashes,
                ..Default::default()
            };
            c.coordinator.locate(request).await.map(drop)
        }
        "watch" => {
            let request = pb::WatchRequest {
                namespace: name,
                ..Default::default()
            };
            let mut stream = c.watch.watch(request).await?.into_inner();
            let first = stream.message().await?.and_then(|message| message.message);
            assert!(matches!(first, Some(Message::Started(_))));
            Ok(())
        }
        "find_locations" => {
            let request = pb::FindLocationsRequest {
                namespace: name,
                hashes,
            };
            c.locations.find_locations(request).await.map(drop)
        }
        "list_claims" => c
            .claims
            .list_claims(pb::ListClaimsRequest { namespace: name })
            .await
            .map(drop),
        "list_sources" => {
            let request = pb::ListSourcesRequest {
                namespace: name,
                ..Default::default()
            };
            c.sources.list(request).await.map(drop)
        }
        "put_locations" => {
            let request = pb::PutLocationsRequest {
                namespace: name,
                hashes,
                location: "s3://bucket/".to_owned(),
                ..Default::default()
            };
            c.locations.put_locations(request).await.map(drop)
        }
        "remove_locations" => {
            let request = pb::RemoveLocationsRequest {
                namespace: name,
                hashes,
                ..Default::default()
            };
            c.locations.remove_locations(request).await.map(drop)
        }
        "create_namespace" => {
            let request = pb::CreateNamespaceRequest {
                spec: Some(namespace(&name)),
            };
            c.coordinator.create_namespace(request).await.map(drop)
        }
        "claim" => {
            let request = pb::ClaimRequest {
                namespace: name,
                hashes,
                node: "n1".to_owned(),
                incarnation: 1,
                ..Default::default()
            };
            c.claims.claim(request).await.map(drop)
        }
        "delete_namespace" => {
            // Regions keep it, or nobody has made it: it is there after this as before.
            let request = pb::DeleteNamespaceRequest {
                name: format!("{name}-not-there"),
                force: false,
            };
            c.coordinator.delete_namespace(request).await.map(drop)
        }
        "set_policy" => {
            let request = pb::SetNamespacePolicyRequest {
                namespace: name,
                ..Default::default()
            };
            c.locations.set_namespace_policy(request).await.map(drop)
        }
        "set_copies" => {
            let request = pb::SetCopiesRequest {
                namespace: name,
                ..Default::default()
            };
            c.replication.set_copies(request).await.map(drop)
        }
        "want_copies" => {
            let request = pb::WantCopiesRequest {
                namespace: name,
                hashes,
                ..Default::default()
            };
            c.replication.want_copies(request).await.map(drop)
        }
        "get_policy" => {
            let request = pb::GetNamespacePolicyRequest { namespace: name };
            c.locations.get_namespace_policy(request).await.map(drop)
        }
        "describe_copies" => {
            let request = pb::DescribeCopiesRequest { namespace: name };
            c.replication.describe_copies(request).await.map(drop)
        }
        "describe_namespace" => {
            let request = pb::DescribeNamespaceRequest { name };
            c.coordinator.describe_namespace(request).await.map(drop)
        }
        other => panic!("no call {other}"),
    }
}

/// One identity a right, on `a/*`; and one for everything.
async fn world() -> (World, Vec<(&'static str, Clients)>) {
    let mut world = World::new();
    let rights = ["read", "write", "claim", "admin"];
    let mut policy = identity(
        "root",
        "",
        "{ namespace = \"*\", allow = [\"read\", \"write\", \"claim\", \"admin\"] }",
    );
    policy += &identity("none", "", "");
    for right in rights {
        let grants = format!("{{ namespace = \"a/*\", allow = [\"{right}\"] }}");
        policy += &identity(right, "node = \"n1\"", &grants);
    }
    world.policy(&policy);
    world
        .coordinator(&["--policy".to_owned(), "policy.toml".to_owned()])
        .await;
    let mut clients = Vec::new();
    for name in rights.into_iter().chain(["none", "root"]) {
        let token = world.token(name);
        clients.push((name, world.as_token(&token).await));
    }
    let root = clients.last().expect("root is last").1.clone();
    for name in ["a/x", "b/x"] {
        call(&root, "create_namespace", name).await.unwrap();
    }
    (world, clients)
}

#[tokio::test]
async fn each_call_takes_its_right_and_no_other() {
    let (world, clients) = world().await;
    for (who, clients) in &clients {
        for (what, needs) in CALLS {
            let outcome = call(clients, what, "a/x").await;
            let may = match (*who, needs) {
                ("root", _) => what != "claim",
                ("none", _) => false,
                (_, "any") => true,
                ("admin", _) if what == "create_namespace" => true,
                (right, needed) => right == needed,
            };
            let denied = outcome
                .as_ref()
                .is_err_and(|status| reason(status) == DENIED);
            assert_eq!(denied, !may, "{who}: {what}: {outcome:?}");
        }
    }
    // Whoever is nobody is nobody whatever he asks.
    let wrong = world.path().join("wrong.token");
    std::fs::write(&wrong, "a token that nobody has".replace(' ', "-")).unwrap();
    let strangers = [Some(wrong.display().to_string()), None];
    for token in strangers {
        let stranger = world
            .as_(Secured {
                token: token.map(Into::into),
                ..Secured::default()
            })
            .await;
        for (what, _) in CALLS {
            let status = call(&stranger, what, "a/x").await.unwrap_err();
            let expected = (Code::Unauthenticated, Some(Reason::Unauthenticated));
            assert_eq!(reason(&status), expected, "{what}: {status:?}");
        }
    }
    world
        .logged("none may not locate blocks in namespace a/x")
        .await;
}

#[tokio::test]
async fn what_one_may_not_see_looks_as_if_it_were_not_there() {
    let (_world, clients) = world().await;
    for (who, clients) in clients.iter().filter(|(who, _)| *who != "root") {
        for (what, _) in CALLS {
            let there = call(clients, what, "b/x").await.unwrap_err();
            let not_there = call(clients, what, "b/y").await.unwrap_err();
            assert_eq!(reason(&there), DENIED, "{who}: {what}");
            assert_eq!(reason(&not_there), DENIED, "{who}: {what}");
            let text = there.message().replace("b/x", "b/y");
            assert_eq!(text, not_there.message(), "{who}: {what}");
        }
        let mut coordinator = clients.coordinator.clone();
        let listed = coordinator
            .list_namespaces(pb::ListNamespacesRequest {})
            .await;
        let listed = listed.unwrap().into_inner().namespaces;
        let names: Vec<_> = listed
            .into_iter()
            .map(|info| info.spec.unwrap().name)
            .collect();
        let seen: &[&str] = if *who == "none" { &[] } else { &["a/x"] };
        assert_eq!(names, seen, "{who}");
    }
}

type Stream = (
    mpsc::Sender<pb::AgentMessage>,
    Streaming<pb::CoordinatorMessage>,
);

async fn session(clients: &Clients, node: &str) -> Stream {
    let (to, outgoing) = mpsc::channel(4);
    let hello = pb::Hello {
        node: node.to_owned(),
        incarnation: 1,
        oldest_delta: 1,
        next_delta: 1,
        ..pb::Hello::default()
    };
    say(&to, Said::Hello(hello)).await;
    let mut coordinator = clients.coordinator.clone();
    let from = coordinator
        .session(ReceiverStream::new(outgoing))
        .await
        .unwrap();
    (to, from.into_inner())
}

async fn say(to: &mpsc::Sender<pb::AgentMessage>, said: Said) {
    let message = pb::AgentMessage {
        message: Some(said),
    };
    to.send(message).await.unwrap();
}

fn declared(region: u32, name: &str) -> pb::RegionDeclaration {
    let spec = namespace(name);
    let layout = spec.layout.clone().unwrap();
    let len = layout.plane_bytes;
    let planes = (0..u64::from(layout.plane_count)).map(|n| pb::Plane {
        base: n * len * 4,
        stride: len,
        len,
    });
    pb::RegionDeclaration {
        region,
        geometry: Some(pb::Geometry {
            slots: 4,
            planes: planes.collect(),
        }),
        namespace: Some(spec),
    }
}

#[tokio::test]
async fn an_agent_speaks_for_its_own_node_and_where_it_may() {
    let (world, clients) = world().await;
    let of = |name: &str| &clients.iter().find(|(who, _)| *who == name).unwrap().1;
    let (_to, mut from) = session(of("write"), "n2").await;
    let refused = from.message().await.unwrap_err();
    assert_eq!(reason(&refused), DENIED);
    assert!(refused.message().contains("for node n2"), "{refused}");
    world
        .logged("write may not open a session for node n2")
        .await;

    let (to, mut from) = session(of("write"), "n1").await;
    let inventory = pb::Inventory {
        first: true,
        last: true,
        regions: vec![declared(1, "a/x"), declared(2, "b/x"), declared(3, "b/new")],
        ..pb::Inventory::default()
    };
    say(&to, Said::Inventory(inventory)).await;
    let mut refused = Vec::new();
    loop {
        match from.message().await.unwrap().unwrap().message.unwrap() {
            Told::RegionRefused(region) => refused.push((region.region, region.reason())),
            Told::Ack(_) => break,
            _ => {}
        }
    }
    let denied = Reason::PermissionDenied;
    assert_eq!(refused, [(2, denied), (3, denied)]);
    // Nothing was made by it.
    let describe = |clients: &Clients, name: &str| {
        let (mut coordinator, name) = (clients.coordinator.clone(), name.to_owned());
        async move {
            coordinator
                .describe_namespace(pb::DescribeNamespaceRequest { name })
                .await
        }
    };
    assert_eq!(
        describe(of("root"), "b/new").await.unwrap_err().code(),
        Code::NotFound
    );
    let regions = describe(of("root"), "a/x")
        .await
        .unwrap()
        .into_inner()
        .regions;
    assert_eq!(regions, 1);

    // Nor does it speak for another in any other call.
    let mut clients = of("claim").clone();
    let claim = pb::ClaimRequest {
        namespace: "a/x".to_owned(),
        hashes: Some(pack(&hashes(0..1))),
        node: "n2".to_owned(),
        incarnation: 1,
        ..pb::ClaimRequest::default()
    };
    assert_eq!(
        reason(&clients.claims.claim(claim.clone()).await.unwrap_err()),
        DENIED
    );
    let own = pb::ClaimRequest {
        node: "n1".to_owned(),
        ..claim
    };
    let granted = clients.claims.claim(own).await.unwrap().into_inner();
    // A token is a number that can be guessed, and no secret.
    let release = pb::ReleaseClaimsRequest {
        token: granted.token,
        hashes: None,
    };
    let mut stranger = of("root").clone();
    let released = stranger
        .claims
        .release_claims(release.clone())
        .await
        .unwrap();
    assert_eq!(released.into_inner().released, 0);
    let released = clients.claims.release_claims(release).await.unwrap();
    assert_eq!(released.into_inner().released, 1);
    let announce = pb::AnnounceSourcesRequest {
        node: "n2".to_owned(),
        incarnation: 1,
        ..pb::AnnounceSourcesRequest::default()
    };
    assert_eq!(
        reason(&clients.sources.announce(announce).await.unwrap_err()),
        DENIED
    );
    let drain = |node: &str| pb::DrainNodeRequest {
        node: node.to_owned(),
        ..Default::default()
    };
    let drained = clients.coordinator.drain_node(drain("n2")).await;
    assert_eq!(reason(&drained.unwrap_err()), DENIED);
    clients.coordinator.drain_node(drain("n1")).await.unwrap();
}
