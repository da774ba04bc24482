//! Settings in their three layers, asked of the commands' own flags and configurations.

use std::{collections::BTreeMap, io::Write, path::Path};

use kvferry_agent::config::{AgentConfig, ByteSize, EvictionChoice};
use kvferry_settings::{SettingsError, Sources, known_keys, load};
use tempfile::NamedTempFile;

use crate::cli::AgentFlags;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn layered(
    file: Option<&Path>,
    variables: &[(&str, &str)],
    flags: &AgentFlags,
) -> Result<AgentConfig, SettingsError> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    load(&Sources {
        file,
        variable: &|name| variables.get(name).map(|value| (*value).to_owned()),
        flags,
    })
}

#[test]
fn flags_win_over_variables_and_those_over_the_file() {
    let file = file("node = \"file\"\nstall_bound_ms = 111\npull_timeout_ms = 222\n");
    let flags = AgentFlags {
        node: Some("flag".into()),
        ..AgentFlags::default()
    };
    let variables = [
        ("KVFERRY_NODE", "variable"),
        ("KVFERRY_STALL_BOUND_MS", "333"),
    ];
    let config = layered(Some(file.path()), &variables, &flags).unwrap();
    assert_eq!(config.node, "flag");
    assert_eq!(config.stall_bound_ms, 333);
    assert_eq!(config.pull_timeout_ms, 222);
    assert_eq!(
        config.listen_peer,
        AgentConfig::default().listen_peer,
        "what nobody sets keeps its default"
    );
}

#[test]
fn a_list_of_numbers_has_one_or_more() {
    for (text, uids) in [("65534", vec![65_534]), ("1, 2", vec![1, 2])] {
        let flags = AgentFlags {
            allow_uids: Some(text.into()),
            require_tickets: Some("always".into()),
            ..AgentFlags::default()
        };
        let config = layered(None, &[], &flags).unwrap();
        assert_eq!(config.allow_uids, uids);
    }
    let refused = layered(
        None,
        &[("KVFERRY_ALLOW_UIDS", "root")],
        &AgentFlags::default(),
    );
    assert!(refused.is_err());
}

#[test]
fn variables_are_read_as_what_their_key_takes() {
    let variables = [
        ("KVFERRY_NODE", "17"),
        ("KVFERRY_POOL_BYTES", "4GiB"),
        ("KVFERRY_HUGEPAGES", "true"),
        ("KVFERRY_COORDINATORS", "http://a:1, http://b:2"),
        ("KVFERRY_LABELS", "rack=r1,zone=a"),
        ("KVFERRY_EVICTION", "lru"),
        ("KVFERRY_LISTEN_DATA", "127.0.0.1:9"),
    ];
    let config = layered(None, &variables, &AgentFlags::default()).unwrap();
    assert_eq!(config.node, "17");
    assert_eq!(config.pool_bytes, ByteSize(4 << 30));
    assert!(config.hugepages);
    assert_eq!(config.coordinators, ["http://a:1", "http://b:2"]);
    assert_eq!(config.labels["zone"], "a");
    assert_eq!(config.eviction, EvictionChoice::Lru);
    assert_eq!(config.listen_data.port(), 9);
}

#[test]
fn the_file_can_be_named_by_a_variable() {
    let file = file("node = \"file\"\nlabels = { rack = \"r\" }\npool_bytes = \"2MiB\"\n");
    let path = file.path().to_str().unwrap();
    let config = layered(None, &[("KVFERRY_CONFIG", path)], &AgentFlags::default()).unwrap();
    assert_eq!(config.node, "file");
    assert_eq!(config.pool_bytes, ByteSize(2 << 20));
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_what_was_meant() {
    let file = file("node = \"n\"\n\nstall_bound = 5\nlisten_peer = 7\n");
    let error = layered(Some(file.path()), &[], &AgentFlags::default()).unwrap_err();
    let SettingsError::UnknownKey {
        line, key, hint, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((*line, key.as_str()), (3, "stall_bound"));
    assert_eq!(hint.to_string(), "; did you mean `stall_bound_ms`?");
    assert!(
        error
            .to_string()
            .contains(&file.path().display().to_string())
    );
}

#[test]
fn an_unknown_key_near_none_lists_those_there_are() {
    let file = file("colour = 5\n");
    let error = layered(Some(file.path()), &[], &AgentFlags::default()).unwrap_err();
    assert!(error.to_string().contains("advertise_host"), "{error}");
}

#[test]
fn a_bad_value_in_the_file_has_its_line() {
    for (text, at) in [
        ("node = \"n\"\npool_bytes = \"4 gigs\"\n", 2),
        ("\n\nlisten_peer = \"here\"\n", 3),
        ("node = \n", 1),
    ] {
        let file = file(text);
        let error = layered(Some(file.path()), &[], &AgentFlags::default()).unwrap_err();
        assert!(
            matches!(error, SettingsError::File { line, .. } if line == at),
            "{error}"
        );
    }
}

#[test]
fn a_bad_variable_or_flag_is_named() {
    let bad = [("KVFERRY_POOL_BYTES", "4 gigs")];
    let error = layered(None, &bad, &AgentFlags::default()).unwrap_err();
    assert!(matches!(&error, SettingsError::Variable { variable, .. } if variable == bad[0].0));
    assert!(error.to_string().contains("KVFERRY_POOL_BYTES=4 gigs"));

    let flags = AgentFlags {
        listen_peer: Some("here".into()),
        ..AgentFlags::default()
    };
    let error = layered(None, &[], &flags).unwrap_err();
    assert!(matches!(&error, SettingsError::Flag { flag, .. } if flag == "listen-peer"));
}

#[test]
fn a_missing_file_is_named() {
    let error = layered(
        Some(Path::new("/nowhere/a.toml")),
        &[],
        &AgentFlags::default(),
    );
    assert!(matches!(error, Err(SettingsError::Unreadable { .. })));
}

#[test]
fn every_key_of_the_agent_has_a_flag() {
    let command = <AgentFlags as clap::Args>::augment_args(clap::Command::new("agent"));
    let flags: Vec<_> = command
        .get_arguments()
        .map(|arg| arg.get_id().as_str())
        .collect();
    for key in known_keys::<AgentConfig>() {
        assert!(flags.contains(key), "no flag sets {key}");
    }
}
