//! `node.toml`: parsed once into a valid value, with errors that name the key and what to write.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use quorate_node::Settings;
use quorate_node::settings::TransferConfig;
use quorate_core::key::MAX_BUCKET_BYTES;
use quorate_core::layout::{LayoutError, MAX_MEMBER_TEXT};
use quorate_core::membership::Founding;
use quorate_core::{BucketDefinition, Buckets, Layout, Member};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::registry::Registry;

/// What is wrong with a configuration, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> ConfigError {
        ConfigError { message: message.into() }
    }
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// `[node]`: this process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    /// This node's name, unique in the cluster and kept for good. Default "node1".
    pub name: String,
    /// Where to listen, "ip:port". Default "127.0.0.1:7400".
    pub listen: SocketAddr,
    /// Where others reach it, "host:port". Default: what `listen` says.
    pub advertise: Option<String>,
    /// Its failure zone: replicas are spread over zones. Default: none.
    pub zone: String,
    /// Where its data is. Default "./data".
    pub data: PathBuf,
    /// Event loops, each on a thread of its own. Default: one a core.
    pub workers: Option<usize>,
    /// Most connections at a time; further ones are closed. Default 10,000.
    pub max_connections: usize,
    /// Listen on more than loopback although nothing is encrypted or authenticated. Default false.
    pub insecure: bool,
    /// Where to serve `/metrics`, `/livez` and `/readyz` over HTTP, "ip:port". Default: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Logs as "text" or "json", on stderr. Default "text".
    pub log_format: LogFormat,
    /// What to log, as `tracing` filters read it. Default "info".
    pub log: String,
}

impl Default for NodeSection {
    fn default() -> Self {
        NodeSection {
            name: "node1".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: None,
            zone: String::new(),
            data: "./data".into(),
            workers: None,
            max_connections: 10_000,
            insecure: false,
            metrics: None,
            log_format: LogFormat::Text,
            log: "info".into(),
        }
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `[cluster]`: what all nodes agree on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// The cluster's id: nodes of another one are refused. Default "quorate".
    pub id: String,
    /// N, replicas a partition. Default 3, or as many as there are members if those are fewer.
    pub replicas: Option<u8>,
    /// Q, partitions of the ring: a power of two, fixed when the cluster is created. Default 1024.
    pub partitions: u32,
    /// Whether a node that is found, and has no part in the layout yet, becomes a member at once. Default false: an operator
    /// commits it.
    pub auto_commit: bool,
    /// Most MiB a second that a node copies from others when the layout changes. Default 16.
    pub transfer_rate_mib_s: u64,
}

impl Default for ClusterSection {
    fn default() -> Self {
        let TransferConfig { bytes_per_s, auto_commit } = TransferConfig::default();
        ClusterSection {
            id: "quorate".into(),
            replicas: None,
            partitions: 1024,
            auto_commit,
            transfer_rate_mib_s: bytes_per_s / MIB,
        }
    }
}

/// `[faults]`: for tests only.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultsSection {
    /// Let clients cut this node off from its peers. Default false.
    pub enabled: bool,
}

/// A valid configuration.
pub struct Config {
    /// This process.
    pub node: NodeSection,
    /// What all nodes agree on.
    pub cluster: ClusterSection,
    /// The storage plugin's name and its own keys.
    pub storage: PluginSection,
    /// The membership plugin's name and its own keys.
    pub membership: PluginSection,
    /// The buckets that a cluster is founded with, by name.
    pub buckets: BTreeMap<String, BucketDefinition>,
    /// How requests are served, hints kept, replicas repaired, tombstones reaped.
    pub settings: Settings,
    /// For tests.
    pub faults: FaultsSection,
    /// N.
    pub replicas: u8,
    /// The layout that the members make, where they are all known from the start.
    pub layout: Option<Layout>,
}

/// A section that begins with a plugin's name.
#[derive(Debug, Clone)]
pub struct PluginSection {
    /// The plugin.
    pub name: String,
    /// The rest, which is the plugin's.
    pub rest: Table,
}

const SECTIONS: [&str; 10] = [
    "node",
    "cluster",
    "storage",
    "membership",
    "buckets",
    "coordinator",
    "hints",
    "repair",
    "reaping",
    "faults",
];
const MIB: u64 = 1024 * 1024;
const ENVIRONMENT_PREFIX: &str = "QUORATE__";

impl Config {
    /// Reads a file, lets the environment override it (`QUORATE__SECTION__KEY=value`), and checks everything that can
    /// be checked without touching the disk or the network.
    ///
    /// # Errors
    /// The first thing that is wrong, with the key and what to write.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
        registry: &Registry,
    ) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(format!("cannot read {}: {error}", path.display())))?;
        Config::parse(&text, environment, registry)
            .map_err(|error| ConfigError::new(format!("{}: {error}", path.display())))
    }

    /// As [`Config::load`], from the text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
        registry: &Registry,
    ) -> Result<Config, ConfigError> {
        let mut table: Table =
            text.parse().map_err(|error: toml::de::Error| ConfigError::new(error.to_string()))?;
        override_from(&mut table, environment)?;
        if let Some(unknown) = table.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
            return Err(ConfigError::new(unknown_key("section", unknown, &SECTIONS)));
        }
        let mut take = |name: &str| -> Result<Table, ConfigError> {
            match table.remove(name) {
                None => Ok(Table::new()),
                Some(Value::Table(table)) => Ok(table),
                Some(_) => Err(ConfigError::new(format!("[{name}] must be a section"))),
            }
        };
        let node: NodeSection = section("node", take("node")?)?;
        let cluster: ClusterSection = section("cluster", take("cluster")?)?;
        let storage = plugin("storage", "engine", "lmdb", take("storage")?)?;
        let membership = plugin("membership", "plugin", "static", take("membership")?)?;
        let mut buckets = BTreeMap::new();
        for (name, definition) in take("buckets")? {
            let place = format!("buckets.{name}");
            let Value::Table(definition) = definition else {
                return Err(ConfigError::new(format!("[{place}] must be a section")));
            };
            buckets.insert(name, section::<BucketDefinition>(&place, definition)?);
        }
        let settings = Settings {
            coordinator: section("coordinator", take("coordinator")?)?,
            hints: section("hints", take("hints")?)?,
            repair: section("repair", take("repair")?)?,
            reaping: section("reaping", take("reaping")?)?,
            transfer: TransferConfig {
                bytes_per_s: cluster.transfer_rate_mib_s.saturating_mul(MIB),
                auto_commit: cluster.auto_commit,
            },
        };
        let faults = section("faults", take("faults")?)?;

        check_node(&node)?;
        check_cluster(&cluster)?;
        check_settings(&settings)?;
        registry.check_storage(&storage.name, storage.rest.clone())?;
        let this = member_of(&node);
        let opened = registry.open_membership(&membership.name, membership.rest.clone(), &this)?;
        let members: Vec<Member> = opened.view().into_iter().map(|view| view.member).collect();
        let expected = opened.founding().map(|founding| founding.expect).filter(|&expect| expect > 0);
        let count = expected.unwrap_or(members.len());
        let replicas = cluster.replicas.unwrap_or(count.min(3) as u8);
        Buckets::new(&buckets, replicas).map_err(|error| match error {
            LayoutError::Bucket { name, detail } => ConfigError::new(format!("[buckets.{name}] {detail}")),
            other => ConfigError::new(format!("[buckets] {other}")),
        })?;
        for (name, definition) in &buckets {
            registry.check_resolver(&format!("[buckets.{name}] resolver"), &definition.resolver)?;
        }
        let layout = match opened.founding() {
            Some(founding) => {
                check_founding(&founding, &cluster, &buckets, replicas)?;
                None
            }
            None => Some(first_layout(members, &cluster, &buckets, replicas)?),
        };
        Ok(Config { node, cluster, storage, membership, buckets, settings, faults, replicas, layout })
    }

    /// The first layout of these members.
    ///
    /// # Errors
    /// What does not fit.
    pub fn first_layout(&self, members: Vec<Member>) -> Result<Layout, ConfigError> {
        first_layout(members, &self.cluster, &self.buckets, self.replicas)
    }

    /// This node as a member.
    pub fn this(&self) -> Member {
        member_of(&self.node)
    }
}

fn first_layout(
    members: Vec<Member>,
    cluster: &ClusterSection,
    buckets: &BTreeMap<String, BucketDefinition>,
    replicas: u8,
) -> Result<Layout, ConfigError> {
    Layout::first(members, cluster.partitions, replicas)
        .and_then(|layout| layout.with_buckets(buckets))
        .map_err(|error| ConfigError::new(format!("[cluster] {error}")))
}

/// What would only be found when the nodes have found each other, found now.
fn check_founding(
    founding: &Founding,
    cluster: &ClusterSection,
    buckets: &BTreeMap<String, BucketDefinition>,
    replicas: u8,
) -> Result<(), ConfigError> {
    if founding.expect == 0 {
        return Ok(());
    }
    let stand_in = |n: usize| Member::new(&format!("member-{n}"), "", "");
    first_layout((0..founding.expect).map(stand_in).collect(), cluster, buckets, replicas).map(drop)
}

fn member_of(node: &NodeSection) -> Member {
    let address = node.advertise.clone().unwrap_or_else(|| node.listen.to_string());
    Member::new(&node.name, &address, &node.zone)
}

fn check_node(node: &NodeSection) -> Result<(), ConfigError> {
    let named = !node.name.is_empty()
        && node.name.len() <= MAX_BUCKET_BYTES
        && node.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !named {
        return Err(ConfigError::new(format!(
            "[node] name = {:?}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -",
            node.name
        )));
    }
    let is_loopback = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    let ports = [("listen", Some(node.listen)), ("metrics", node.metrics)];
    for (name, address) in ports.into_iter().filter_map(|(name, address)| Some((name, address?))) {
        if !is_loopback(address) && !node.insecure {
            return Err(ConfigError::new(format!(
                "[node] {name} = \"{address}\": nothing is encrypted or authenticated yet, so other machines could read and change everything; \
                 use 127.0.0.1, or set insecure = true in [node] if the network is yours alone"
            )));
        }
    }
    if node.zone.len() > MAX_MEMBER_TEXT {
        let bytes = node.zone.len();
        return Err(ConfigError::new(format!("[node] zone of {bytes} bytes: use up to {MAX_MEMBER_TEXT}")));
    }
    if node.workers == Some(0) || node.workers.is_some_and(|workers| workers > 256) {
        return Err(ConfigError::new("[node] workers: use 1 to 256"));
    }
    Ok(())
}

fn check_cluster(cluster: &ClusterSection) -> Result<(), ConfigError> {
    if cluster.id.is_empty() || cluster.id.len() > 64 {
        return Err(ConfigError::new(format!("[cluster] id = {:?}: use 1 to 64 bytes", cluster.id)));
    }
    Ok(())
}

fn check_settings(settings: &Settings) -> Result<(), ConfigError> {
    let Settings { coordinator, hints, repair, reaping, transfer } = settings;
    let day = 86_400_000;
    let numbers = [
        ("coordinator", "request_timeout_ms", coordinator.request_timeout_ms, day),
        ("coordinator", "max_request_timeout_ms", coordinator.max_request_timeout_ms, day),
        ("coordinator", "max_in_flight", coordinator.max_in_flight as u64, day),
        ("coordinator", "max_clock_skew_ms", coordinator.max_clock_skew_ms, day),
        ("hints", "max_mib_per_target", hints.max_mib_per_target, 1 << 30),
        ("repair", "interval_ms", repair.interval_ms, 30 * day),
        ("repair", "max_keys_per_second", repair.max_keys_per_second, 1 << 30),
        ("cluster", "transfer_rate_mib_s", transfer.bytes_per_s / MIB, 1 << 20),
        ("reaping", "interval_ms", reaping.interval_ms, 30 * day),
        ("reaping", "grace_ms", reaping.grace_ms, 365 * day),
    ];
    if let Some((section, name, number, limit)) =
        numbers.iter().find(|(_, _, number, limit)| !(1..=*limit).contains(number))
    {
        return Err(ConfigError::new(format!("[{section}] {name} = {number}: use 1 to {limit}")));
    }
    let shortest = settings.shortest_grace_ms();
    if reaping.grace_ms < shortest {
        return Err(ConfigError::new(format!(
            "[reaping] grace_ms = {}: a message may bring back what is reaped earlier than {shortest} ms after it \
             ([coordinator] max_request_timeout_ms, twice max_clock_skew_ms, and 5 s); use that or more",
            reaping.grace_ms
        )));
    }
    Ok(())
}

/// Reads one section; an unknown key is an error with a suggestion.
pub(crate) fn section<C: DeserializeOwned>(name: &str, table: Table) -> Result<C, ConfigError> {
    Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        let message = error.message();
        match unknown_field(message) {
            Some((unknown, known)) => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                ConfigError::new(format!("[{name}] {}", unknown_key("key", &unknown, &known)))
            }
            None => ConfigError::new(format!("[{name}] {}", error.to_string().trim().replace('\n', " "))),
        }
    })
}

/// Takes serde's "unknown field `a`, expected one of `b`, `c`" apart.
fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((unknown.to_owned(), known))
}

fn unknown_key(what: &str, unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown)));
    let suggestion = match nearest {
        Some(nearest) if strsim::jaro_winkler(nearest, unknown) > 0.7 => {
            format!(": did you mean {nearest:?}?")
        }
        _ => ".".to_owned(),
    };
    match known {
        [] => format!("unknown {what} {unknown:?}: there are none here"),
        known => format!("unknown {what} {unknown:?}{suggestion} Known: {}", known.join(", ")),
    }
}

fn plugin(section: &str, key: &str, default: &str, mut table: Table) -> Result<PluginSection, ConfigError> {
    let name = match table.remove(key) {
        None => default.to_owned(),
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(ConfigError::new(format!("[{section}] {key} = {other}: use a plugin's name")));
        }
    };
    Ok(PluginSection { name, rest: table })
}

fn override_from(
    table: &mut Table,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    for (name, value) in environment {
        let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let Some((key, sections)) = path.split_last().filter(|(_, sections)| !sections.is_empty()) else {
            return Err(ConfigError::new(format!(
                "environment {name}: use {ENVIRONMENT_PREFIX}SECTION__KEY"
            )));
        };
        let mut place = &mut *table;
        for section in sections {
            let entry = place.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            place = entry
                .as_table_mut()
                .ok_or_else(|| ConfigError::new(format!("environment {name}: {section} is no section")))?;
        }
        // What reads as a TOML value is one; anything else is text.
        let parsed =
            format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        place.insert(key.clone(), parsed.unwrap_or(Value::String(value)));
    }
    Ok(())
}
