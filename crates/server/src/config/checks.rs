//! Checks that find invalid values which the sections' types permit, such as a number out of range.

use std::net::{IpAddr, SocketAddr};

use quorate_core::key::MAX_BUCKET_BYTES;
use quorate_core::member::MAX_MEMBER_TEXT;
use quorate_node::Settings;

use super::sections::{ClusterSection, MIB, NodeSection};
use crate::section::ConfigError;

const DAY_MS: u64 = 86_400_000;

pub(super) fn check_node(node: &NodeSection) -> Result<(), ConfigError> {
    check_name(&node.name)?;
    check_addresses(node)?;
    if node.zone.len() > MAX_MEMBER_TEXT {
        let bytes = node.zone.len();
        return Err(ConfigError::new(format!("[node] zone of {bytes} bytes: use up to {MAX_MEMBER_TEXT}")));
    }
    if let Some(workers) = node.workers.filter(|workers| !(1..=256).contains(workers)) {
        return Err(ConfigError::new(format!("[node] workers = {workers}: use 1 to 256")));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let valid = !name.is_empty()
        && name.len() <= MAX_BUCKET_BYTES
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    match valid {
        true => Ok(()),
        false => Err(ConfigError::new(format!(
            "[node] name = {name:?}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -"
        ))),
    }
}

/// Refuses ports that other machines can reach, unless `insecure` permits them.
fn check_addresses(node: &NodeSection) -> Result<(), ConfigError> {
    let is_loopback = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    let ports = [("listen", Some(node.listen)), ("metrics", node.metrics)];
    for (name, address) in ports.into_iter().filter_map(|(name, address)| Some((name, address?))) {
        if !is_loopback(address) && !node.insecure {
            return Err(ConfigError::new(format!(
                "[node] {name} = \"{address}\": nothing is encrypted or authenticated yet, so other machines \
                 could read and change everything; use 127.0.0.1, or set insecure = true in [node] if the \
                 network is yours alone"
            )));
        }
    }
    Ok(())
}

pub(super) fn check_cluster(cluster: &ClusterSection) -> Result<(), ConfigError> {
    if cluster.replicas == Some(0) {
        return Err(ConfigError::new("[cluster] replicas = 0: use 1 or more"));
    }
    if cluster.id.is_empty() || cluster.id.len() > 64 {
        return Err(ConfigError::new(format!("[cluster] id = {:?}: use 1 to 64 bytes", cluster.id)));
    }
    Ok(())
}

pub(super) fn check_settings(settings: &Settings) -> Result<(), ConfigError> {
    let Settings { coordinator, hints, repair, tombstone_gc, transfer } = settings;
    let numbers = [
        ("coordinator", "request_timeout_ms", coordinator.request_timeout_ms, DAY_MS),
        ("coordinator", "max_request_timeout_ms", coordinator.max_request_timeout_ms, DAY_MS),
        ("coordinator", "max_in_flight", coordinator.max_in_flight as u64, DAY_MS),
        ("coordinator", "max_clock_skew_ms", coordinator.max_clock_skew_ms, DAY_MS),
        ("hints", "max_mib_per_target", hints.max_mib_per_target, 1 << 30),
        ("repair", "interval_ms", repair.interval_ms, 30 * DAY_MS),
        ("repair", "max_keys_per_second", repair.max_keys_per_second, 1 << 30),
        ("cluster", "transfer_rate_mib_s", transfer.bytes_per_s / MIB, 1 << 20),
        ("tombstone_gc", "interval_ms", tombstone_gc.interval_ms, 30 * DAY_MS),
        ("tombstone_gc", "grace_ms", tombstone_gc.grace_ms, 365 * DAY_MS),
    ];
    if let Some((section, name, number, limit)) =
        numbers.iter().find(|(_, _, number, limit)| !(1..=*limit).contains(number))
    {
        return Err(ConfigError::new(format!("[{section}] {name} = {number}: use 1 to {limit}")));
    }
    let shortest = settings.shortest_grace_ms();
    if tombstone_gc.grace_ms < shortest {
        return Err(ConfigError::new(format!(
            "[tombstone_gc] grace_ms = {}: use {shortest} or more, because a delayed message could bring back a deleted \
             value ({shortest} ms are [coordinator] max_request_timeout_ms, twice max_clock_skew_ms, and 5 s)",
            tombstone_gc.grace_ms
        )));
    }
    Ok(())
}
