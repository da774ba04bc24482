use super::*;

fn config() -> AgentConfig {
    AgentConfig {
        node: "n1".into(),
        socket: Some("/run/kvferry/n1.sock".into()),
        ..AgentConfig::default()
    }
}

fn refused(change: impl FnOnce(&mut AgentConfig)) -> ConfigError {
    let mut config = config();
    change(&mut config);
    config.validate().unwrap_err()
}

#[test]
fn defaults_are_valid_and_stay_on_this_host() {
    let config = config();
    config.validate().unwrap();
    assert!(config.listen_peer.ip().is_loopback() && config.listen_data.ip().is_loopback());
    assert_eq!(
        config.descriptor_socket_path(),
        Path::new("/run/kvferry/n1.sock.fds")
    );
}

#[test]
fn numbers_outside_their_bounds_are_named() {
    assert_eq!(
        refused(|c| c.stall_bound_ms = 1),
        ConfigError::OutOfRange {
            key: "stall_bound_ms",
            value: 1,
            min: 50,
            max: 60_000
        }
    );
    for change in [
        (|c| c.pool_bytes = ByteSize(0)) as fn(&mut AgentConfig),
        |c| c.tcp_connections_per_peer = 17,
        |c| c.pull_timeout_ms = 600_001,
    ] {
        assert!(matches!(refused(change), ConfigError::OutOfRange { .. }));
    }
}

#[test]
fn listening_beyond_this_host_needs_insecure_and_an_address() {
    let everywhere: SocketAddr = "0.0.0.0:7401".parse().unwrap();
    assert!(matches!(
        refused(|c| c.listen_peer = everywhere),
        ConfigError::Insecure {
            key: "listen_peer",
            ..
        }
    ));
    let open = |c: &mut AgentConfig| {
        c.insecure = true;
        c.listen_data = "[::]:7402".parse().unwrap();
    };
    assert!(matches!(
        refused(open),
        ConfigError::AdvertiseMissing {
            key: "listen_data",
            ..
        }
    ));
    assert!(matches!(
        refused(|c| c.advertise_host = Some("0.0.0.0".parse().unwrap())),
        ConfigError::AdvertiseUnusable { .. }
    ));
    let mut advertised = config();
    open(&mut advertised);
    advertised.advertise_host = Some("10.0.0.1".parse().unwrap());
    advertised.validate().unwrap();
}

#[test]
fn a_certificate_is_enough_to_listen_beyond_this_host() {
    let mut secure = config();
    secure.listen_peer = "10.0.0.1:7401".parse().unwrap();
    secure.listen_data = "10.0.0.1:7402".parse().unwrap();
    secure.tls_cert = Some("node.pem".into());
    assert!(secure.validate().is_err(), "half a pair is none");
    secure.tls_key = Some("node.key".into());
    secure.validate().unwrap();
}

#[test]
fn a_token_travels_in_clear_on_this_host_only() {
    let secret = |url: &str| AgentConfig {
        coordinators: vec![url.to_owned()],
        token_file: Some("token".into()),
        ..config()
    };
    secret("http://127.0.0.1:7400").validate().unwrap();
    let clear = secret("http://10.0.0.1:7400").validate().unwrap_err();
    assert!(matches!(
        clear,
        ConfigError::Coordinator(DialRefusal::TokenInClear { .. })
    ));
    let no_ca = secret("https://10.0.0.1:7400").validate().unwrap_err();
    assert!(matches!(
        no_ca,
        ConfigError::Coordinator(DialRefusal::NoCa { .. })
    ));
}

#[test]
fn users_are_found_by_number_or_name() {
    let of = |users: &[&str]| AgentConfig {
        socket_users: users.iter().map(|&user| user.to_owned()).collect(),
        ..config()
    };
    assert_eq!(of(&["7", "root"]).socket_uids().unwrap(), [7, 0]);
    let nobody = of(&["no-such-user"]).validate().unwrap_err();
    assert!(matches!(nobody, ConfigError::NoSuchUser { .. }));
    assert_eq!(uid_in("a:x:1:1::/:\nbroken\nb:x:2:2", "b"), Some(2));
}

#[test]
fn two_listeners_need_two_ports_unless_the_system_chooses() {
    assert!(matches!(
        refused(|c| c.listen_data = c.listen_peer),
        ConfigError::SamePort { .. }
    ));
    assert!(matches!(
        refused(|c| c.listen_metrics = MetricsListen::At(c.listen_data)),
        ConfigError::SamePort {
            keys: "listen_metrics and listen_data",
            ..
        }
    ));
    assert!(matches!(
        refused(|c| c.listen_metrics = MetricsListen::At("0.0.0.0:7403".parse().unwrap())),
        ConfigError::InsecureMetrics { .. }
    ));
    let mut told = config();
    told.listen_metrics = MetricsListen::At("0.0.0.0:7403".parse().unwrap());
    told.insecure_metrics = true;
    told.validate().unwrap();
    let mut ephemeral = config();
    ephemeral.listen_peer.set_port(0);
    ephemeral.listen_data.set_port(0);
    ephemeral.validate().unwrap();
}

#[test]
fn sockets_that_nobody_could_connect_to_are_refused() {
    let long = format!("/{}", "x".repeat(103));
    assert_eq!(
        refused(|c| c.socket = Some(long.clone().into())),
        ConfigError::SocketTooLong {
            path: long.into(),
            len: 104,
            max: 103
        }
    );
    assert!(matches!(
        refused(|c| c.socket = Some("a.sock".into())),
        ConfigError::SocketRelative { .. }
    ));
}

#[test]
fn a_coordinator_over_tls_takes_a_ca() {
    let https = |c: &mut AgentConfig| c.coordinators = vec!["https://c:7400".into()];
    assert!(matches!(refused(https), ConfigError::Coordinator(_)));
}

#[test]
fn coordinators_are_http_addresses() {
    assert_eq!(
        refused(|c| c.coordinators.clear()),
        ConfigError::CoordinatorCount { count: 0 }
    );
    for bad in ["127.0.0.1:7400", "http://c", "http://c:7400/x", "nonsense"] {
        assert!(
            matches!(
                refused(|c| c.coordinators = vec![bad.into()]),
                ConfigError::CoordinatorAddress { .. }
            ),
            "{bad}"
        );
    }
    for good in ["http://c:7400", "http://[::1]:7400/", "http://10.0.0.1:1"] {
        assert!(is_http(good), "{good}");
    }
}

#[test]
fn names_and_labels_are_checked() {
    assert!(matches!(
        refused(|c| c.node = "a b".into()),
        ConfigError::Name { key: "node", .. }
    ));
    assert!(matches!(
        refused(|c| {
            c.labels.insert("rack".into(), "r 1".into());
        }),
        ConfigError::Name { key: "labels", .. }
    ));
}

#[test]
fn the_default_socket_is_in_the_runtime_directory_or_in_tmp() {
    assert_eq!(
        socket_path_in(Some(Path::new("/run/user/7")), 7, "n"),
        Path::new("/run/user/7/kvferry/n.sock")
    );
    for runtime in [None, Some(Path::new("")), Some(Path::new("relative"))] {
        assert_eq!(
            socket_path_in(runtime, 7, "n"),
            Path::new("/tmp/kvferry-7/n.sock")
        );
    }
}
