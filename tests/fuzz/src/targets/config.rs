//! Configuration files of agents and coordinators, and sizes as people write them.

use kvferry_agent::{AgentConfig, config::ByteSize};
use kvferry_coordinator::CoordinatorConfig;

use crate::Target;

pub(super) const TARGET: Target = Target {
    name: "config",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match toml::from_str::<AgentConfig>(text) {
        Ok(config) => match config.validate() {
            Ok(()) => assert!(config.descriptor_socket_path().is_absolute()),
            Err(why) => assert!(!why.to_string().is_empty()),
        },
        Err(why) => assert!(!why.to_string().is_empty()),
    }
    if let Ok(config) = toml::from_str::<CoordinatorConfig>(text)
        && let Err(why) = config.validate()
    {
        assert!(!why.to_string().is_empty());
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.0.to_string().parse(), Ok(size));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "node = \"a\"\ncoordinators = [\"http://127.0.0.1:7400\"]\npool_bytes = \"4GiB\"\n\
         [labels]\nrack = \"r1\"\n",
        "socket = \"/run/a.sock\"\nlisten_data = \"0.0.0.0:7402\"\nadvertise_host = \"10.0.0.1\"\n\
         insecure = true\nnics = [\"mlx5_0:1\"]\ngid_index = 3\neviction = \"lru\"\n",
        "transport = \"tcp\"\nstall_bound_ms = 500\npull_timeout_ms = 1000\nlisten_metrics = \"off\"\n\
         replicate = false\nhugepages = true\nqps_per_peer = 1\ntcp_connections_per_peer = 2\n",
        "listen = \"127.0.0.1:0\"\nlisten_metrics = \"127.0.0.1:7409\"\nhide_after_ms = 5000\n\
         heartbeat_interval_ms = 100\npurge_after_ms = 60000\nmax_slots = 1000\nmax_sessions = 4\n",
        "1.5GiB",
        "12 kb",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
