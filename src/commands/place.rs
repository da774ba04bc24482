//! A place for a file's blocks: the namespace at the coordinator, and a pool for it at the agent.

use kvferry_proto::{InvalidMessage, NamespaceSpec, pb};

use crate::{
    client::{Agent, Call, ClientError, Coordinator, Reach, Reason},
    size::ByteSize,
};

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the coordinator's namespace makes no sense: {0}")]
    Namespace(#[from] InvalidMessage),
}

/// The namespace as the coordinator knows it; None where it knows none of that name.
pub(crate) async fn find_namespace(
    coordinator: &mut Coordinator,
    name: &str,
    reach: &Reach,
) -> Result<Option<NamespaceSpec>, PlaceError> {
    let request = pb::DescribeNamespaceRequest {
        name: name.to_owned(),
    };
    let call = Call::coordinator("describe the namespace", reach.bound());
    match call.answer(coordinator.describe_namespace(request)).await {
        Ok(info) => {
            let spec = info.spec.ok_or(InvalidMessage::Missing("namespace"))?;
            Ok(Some(spec.try_into()?))
        }
        Err(error) if error.reason() == Some(Reason::NamespaceUnknown) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Creates a namespace; one that is there already with the same spec is as good.
pub(crate) async fn create_namespace(
    coordinator: &mut Coordinator,
    spec: &NamespaceSpec,
    reach: &Reach,
) -> Result<(), ClientError> {
    let request = pb::CreateNamespaceRequest {
        spec: Some(spec.into()),
    };
    Call::coordinator("create the namespace", reach.bound())
        .answer(coordinator.create_namespace(request))
        .await?;
    Ok(())
}

/// How many blocks the agent's pool for the namespace holds; a pool is made where there is none.
pub(crate) async fn pool_slots(
    agent: &mut Agent,
    spec: &NamespaceSpec,
    bytes: Option<ByteSize>,
    reach: &Reach,
) -> Result<u32, ClientError> {
    let region = match find_pool(agent, spec, reach).await? {
        Some(region) => Some(region),
        None => match register_pool(agent, spec, bytes, reach).await {
            Ok(region) => Some(region),
            // Someone else was faster: that pool is as good.
            Err(error) if error.reason() == Some(Reason::PoolExists) => {
                find_pool(agent, spec, reach).await?
            }
            Err(error) => return Err(error),
        },
    };
    let geometry = region.and_then(|region| region.geometry);
    Ok(geometry.map_or(0, |geometry| geometry.slots))
}

async fn find_pool(
    agent: &mut Agent,
    spec: &NamespaceSpec,
    reach: &Reach,
) -> Result<Option<pb::RegionInfo>, ClientError> {
    let stats = Call::agent("show its regions", reach.bound())
        .answer(agent.stats(pb::StatsRequest {}))
        .await?;
    let regions = stats.regions.into_iter().filter_map(|stats| stats.region);
    let mut pools = regions.filter(|region| region.pool);
    Ok(pools.find(|region| region.namespace == spec.name.as_str()))
}

async fn register_pool(
    agent: &mut Agent,
    spec: &NamespaceSpec,
    bytes: Option<ByteSize>,
    reach: &Reach,
) -> Result<pb::RegionInfo, ClientError> {
    let pool = pb::PoolSource {
        // Zero: as much as the agent's settings say.
        bytes: bytes.map_or(0, |size| size.0),
        hugepages: false,
    };
    let request = pb::RegisterRegionRequest {
        namespace: Some(spec.into()),
        source: Some(pb::register_region_request::Source::Pool(pool)),
        ..pb::RegisterRegionRequest::default()
    };
    Call::agent("make a pool for the namespace", reach.bound())
        .answer(agent.register_region(request))
        .await
}
