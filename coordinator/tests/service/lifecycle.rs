//! Start, health, reflection, stop.

use std::net::TcpListener;

use kvferry_coordinator::{Coordinator, CoordinatorConfig, StartError};
use kvferry_proto::pb::{self, coordinator_message::Message as Told};
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{agent::Agent, config, soon, start};

#[tokio::test]
async fn shutdown_tells_open_sessions_and_ends_them() {
    let mut running = start().await;
    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    let mut silent = Agent::open_silent(&mut running).await;
    // An error where it had to wait for them.
    running.stop().await;
    assert_eq!(agent.hear().await, Told::Closing(pb::Closing {}));
    agent.end().await.unwrap();
    assert_eq!(silent.hear().await, Told::Closing(pb::Closing {}));
    silent.end().await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let running = start().await;
    let channel = Channel::from_shared(running.url.clone()).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "kvferry.v1.Coordinator"] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection
        .server_reflection_info(tokio_stream::once(list))
        .await;
    let answer = soon(answers.unwrap().into_inner().message()).await;
    let answer = answer.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else {
        panic!("{answer:?} lists no services");
    };
    let names: Vec<&str> = services.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"kvferry.v1.Coordinator"), "{names:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_start_that_cannot_be_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = CoordinatorConfig {
        listen: taken.local_addr().unwrap(),
        ..config()
    };
    let error = Coordinator::bind(&busy).unwrap_err();
    assert!(matches!(error, StartError::AddressInUse { .. }), "{error}");
    assert!(error.to_string().contains(&busy.listen.to_string()));

    let bad = CoordinatorConfig {
        max_nodes: 0,
        ..busy
    };
    let error = Coordinator::bind(&bad).unwrap_err();
    assert!(
        matches!(error, StartError::Config(_)),
        "before anything is bound"
    );
}
